"""How to call an exported file, in about ten lines of the languages that apps are written in.

Browsers and phones resize by filters that look at four pixels only, with which probabilities can be
far from the measured ones. So the examples in their languages resize by `RESAMPLING`, which a
README shows once: Pillow's bilinear filter, in whole numbers as there, to the same bits.
"""

from collections.abc import Mapping
from typing import Any

from cvpipe.export.formats import KERAS, LITERT, NATIVE, ONNX, OPENVINO, SAVED_MODEL, parse_label

# What `cvpipe.data.images` does for each value of `images.fit`, for a reader who has only Pillow.
RESIZING = {
    "stretch": """\
image = image.resize(({width}, image.height), Image.Resampling.BILINEAR)  # rows first
image = image.resize(({width}, {height}), Image.Resampling.BILINEAR)
""",
    "pad": """\
scale = min({width} / image.width, {height} / image.height)
width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
small = image.resize((width, image.height), Image.Resampling.BILINEAR)  # rows first
small = small.resize((width, height), Image.Resampling.BILINEAR)
image = Image.new("RGB", ({width}, {height}))
image.paste(small, (({width} - width) // 2, ({height} - height) // 2))
""",
    "crop": """\
scale, size = max({width} / image.width, {height} / image.height), image.size
left, top = (max(0.0, (b - a / scale) / 2) for a, b in zip(({width}, {height}), size))
box = left, 0, size[0] - left, size[1]
image = image.resize(({width}, size[1]), Image.Resampling.BILINEAR, box)  # rows first
image = image.resize(
    ({width}, {height}), Image.Resampling.BILINEAR, (0, top, {width}, size[1] - top)
)
""",
}
READING = """\
image = ImageOps.exif_transpose(Image.open("new.jpg")).convert("RGB")
"""
PYTHON = {
    KERAS: """\
import keras, numpy as np
from PIL import Image, ImageOps

model = keras.saving.load_model("{file}")
{reading}probabilities = model.predict(np.asarray(image)[None])[0]
""",
    SAVED_MODEL: """\
import numpy as np, tensorflow
from PIL import Image, ImageOps

model = tensorflow.saved_model.load("{file}")
{reading}images = tensorflow.constant(np.asarray(image)[None])
probabilities = model.signatures["serving_default"](images=images)["probabilities"].numpy()[0]
""",
    LITERT: """\
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

predict = Interpreter("{file}").get_signature_runner()
{reading}probabilities = predict(images=np.asarray(image)[None])["probabilities"][0]
""",
    ONNX: """\
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{file}")
{reading}probabilities = session.run(["probabilities"], {{"images": np.asarray(image)[None]}})[0][0]
""",
    OPENVINO: """\
import numpy as np, openvino
from PIL import Image, ImageOps

settings = {{"INFERENCE_PRECISION_HINT": "f32"}}
model = openvino.Core().compile_model("{file}", "CPU", settings)
{reading}probabilities = model({{"images": np.asarray(image)[None]}})["probabilities"][0]
""",
}
# There is no shorter way: what computes the features is the program in the bundle.
NATIVE_PYTHON = """\
import predict

classifier = predict.load(".")
probabilities = classifier.predict_proba(["new.jpg"])[0]
"""
KOTLIN = """\
val pixels = IntArray(photo.width * photo.height) // photo: Bitmap, not of Config.HARDWARE
photo.getPixels(pixels, 0, photo.width, 0, 0, photo.width, photo.height)
val rgb = ByteArray(3 * pixels.size) {{ (pixels[it / 3] shr (16 - 8 * (it % 3))).toByte() }}
val wide = resample(rgb, photo.height, photo.width, {width})
val values = resample(wide, {width}, photo.height, {height})
val images = ByteBuffer.allocateDirect(values.size).put(values)
val probabilities = Array(1) {{ FloatArray({num_classes}) }}
val interpreter = Interpreter(File("{file}")) // where the app has stored it
interpreter.run(images.rewind(), probabilities)
"""
SWIFT = """\
import Foundation
import TensorFlowLite

let interpreter = try Interpreter(modelPath: "{file}") // where the app has stored it
try interpreter.allocateTensors()
// rgb: [UInt8], the rows of the photo, each pixel red, green, blue
let wide = resample(rgb, lines: photoHeight, from: photoWidth, to: {width})
let values = resample(wide, lines: {width}, from: photoHeight, to: {height})
try interpreter.copy(Data(values), toInputAt: 0)
try interpreter.invoke()
let probabilities = try interpreter.output(at: 0).data.withUnsafeBytes {{
    Array($0.bindMemory(to: Float32.self))
}}
"""
JAVASCRIPT = """\
import * as ort from "onnxruntime-web";

const session = await ort.InferenceSession.create("{file}");
const {{ width, height }} = photo; // an ImageBitmap
const context = new OffscreenCanvas(width, height).getContext("2d");
context.drawImage(photo, 0, 0);
const wide = resample(context.getImageData(0, 0, width, height).data, 4, height, width, {width});
const rgb = resample(wide, 3, {width}, height, {height});
const images = new ort.Tensor("uint8", rgb, [1, {height}, {width}, 3]);
const answer = await session.run({{ images }});
const probabilities = answer.probabilities.data;
"""
# Each resizes along one side and turns the picture over, so that twice gives the picture.
RESAMPLING = {
    "kotlin": """\
fun resample(rgb: ByteArray, lines: Int, from: Int, to: Int): ByteArray {
    val turned = ByteArray(3 * to * lines)
    val scale = from.toDouble() / to
    val reach = maxOf(scale, 1.0)
    for (i in 0 until to) {
        val centre = (i + 0.5) * scale
        val first = maxOf(0, (centre - reach + 0.5).toInt())
        val last = minOf(from, (centre + reach + 0.5).toInt())
        val weights = (first until last).map {
            maxOf(0.0, 1 - Math.abs((it - centre + 0.5) / reach))
        }
        val sum = weights.sum()
        val whole = IntArray(last - first) { (0.5 + weights[it] / sum * (1 shl 22)).toInt() }
        for (line in 0 until lines) for (c in 0..2) {
            var total = 1 shl 21
            for (j in first until last) {
                total += whole[j - first] * (rgb[3 * (line * from + j) + c].toInt() and 255)
            }
            turned[3 * (i * lines + line) + c] = (total shr 22).toByte()
        }
    }
    return turned
}
""",
    "swift": """\
func resample(_ rgb: [UInt8], lines: Int, from: Int, to: Int) -> [UInt8] {
    var turned = [UInt8](repeating: 0, count: 3 * to * lines)
    let scale = Double(from) / Double(to)
    let reach = max(scale, 1.0)
    for i in 0..<to {
        let centre = (Double(i) + 0.5) * scale
        let first = max(0, Int(centre - reach + 0.5))
        let last = min(from, Int(centre + reach + 0.5))
        let weights = (first..<last).map { max(0.0, 1 - abs((Double($0) - centre + 0.5) / reach)) }
        let sum = weights.reduce(0, +)
        let whole = weights.map { Int(0.5 + $0 / sum * 4_194_304) }
        for line in 0..<lines {
            for c in 0..<3 {
                var total = 1 << 21
                for j in first..<last {
                    total += whole[j - first] * Int(rgb[3 * (line * from + j) + c])
                }
                turned[3 * (i * lines + line) + c] = UInt8(total >> 22)
            }
        }
    }
    return turned
}
""",
    "javascript": """\
function resample(pixels, channels, lines, from, to) {
  const turned = new Uint8Array(3 * to * lines);
  const scale = from / to;
  const reach = Math.max(scale, 1);
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(from, Math.trunc(centre + reach + 0.5));
    const weights = Array.from({ length: last - first }, (_, j) =>
      Math.max(0, 1 - Math.abs((first + j - centre + 0.5) / reach)));
    const sum = weights.reduce((a, b) => a + b);
    const whole = weights.map((weight) => Math.trunc(0.5 + (weight / sum) * 2 ** 22));
    for (let line = 0; line < lines; line++) {
      for (let c = 0; c < 3; c++) {
        let total = 2 ** 21;
        for (let j = first; j < last; j++) {
          total += whole[j - first] * pixels[channels * (line * from + j) + c];
        }
        turned[3 * (i * lines + line) + c] = total >> 22;
      }
    }
  }
  return turned;
}
""",
}
OTHERS = {LITERT: {"kotlin": KOTLIN, "swift": SWIFT}, ONNX: {"javascript": JAVASCRIPT}}


def examples_of(label: str, file: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """Write how a file is called.

    Args:
        label: Format and precision, see `cvpipe.export.formats.parse_label`.
        file: Its path in the bundle.
        facts: The content of `bundle.json`.

    Returns:
        Code by language.
    """
    name, _ = parse_label(label)
    if name == NATIVE:
        return {"python": NATIVE_PYTHON}
    height, width = facts["input"]["image_size"]
    resized = RESIZING[facts["input"]["fit"]].format(width=width, height=height)
    values = {
        "file": file,
        "reading": READING + resized,
        "height": height,
        "width": width,
        "num_classes": len(facts["class_names"]),
    }
    others = OTHERS.get(name, {}) if facts["input"]["fit"] == "stretch" else {}  # as they do it
    written = {"python": PYTHON[name], **others}
    return {language: code.format(**values) for language, code in written.items()}
