"""How to call an exported file, in about ten lines of the languages that apps are written in.

The Python examples resize as the measurement did. What a browser or a phone resizes with is
another filter, which a README has to say.
"""

from collections.abc import Mapping
from typing import Any

from cvpipe.export.formats import KERAS, LITERT, NATIVE, ONNX, OPENVINO, SAVED_MODEL, parse_label

# What `cvpipe.data.images` does for each value of `images.fit`, for a reader who has only Pillow.
RESIZING = {
    "stretch": "image.resize({size}, Image.Resampling.BILINEAR)",
    "pad": "ImageOps.pad(image, {size}, Image.Resampling.BILINEAR, color=(0, 0, 0))",
    "crop": "ImageOps.fit(image, {size}, Image.Resampling.BILINEAR)",
}
READING = """\
image = Image.open("new.jpg").convert("RGB")
image = {resized}
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
val interpreter = Interpreter(File("{file}"))
val picture = Bitmap.createScaledBitmap(photo, {width}, {height}, true)
val images = ByteBuffer.allocateDirect({height} * {width} * 3)
for (y in 0 until {height}) for (x in 0 until {width}) {{
    val pixel = picture.getPixel(x, y)
    for (value in listOf(Color.red(pixel), Color.green(pixel), Color.blue(pixel))) {{
        images.put(value.toByte())
    }}
}}
val probabilities = Array(1) {{ FloatArray({num_classes}) }}
interpreter.run(images.rewind(), probabilities)
"""
SWIFT = """\
import TensorFlowLite

let interpreter = try Interpreter(modelPath: "{file}")
try interpreter.allocateTensors()
// rgb: [UInt8] with {height} rows of {width} pixels, each red, green, blue
try interpreter.copy(Data(rgb), toInputAt: 0)
try interpreter.invoke()
let probabilities = try interpreter.output(at: 0).data.withUnsafeBytes {{
    Array($0.bindMemory(to: Float32.self))
}}
"""
JAVASCRIPT = """\
import * as ort from "onnxruntime-web";

const session = await ort.InferenceSession.create("{file}");
const context = new OffscreenCanvas({width}, {height}).getContext("2d");
context.drawImage(photo, 0, 0, {width}, {height});
const rgba = context.getImageData(0, 0, {width}, {height}).data;
const rgb = Uint8Array.from(rgba.filter((_, position) => position % 4 !== 3));
const images = new ort.Tensor("uint8", rgb, [1, {height}, {width}, 3]);
const {{ probabilities }} = await session.run({{ images }});
"""
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
    resized = RESIZING[facts["input"]["fit"]].format(size=(width, height))
    values = {
        "file": file,
        "reading": READING.format(resized=resized),
        "height": height,
        "width": width,
        "num_classes": len(facts["class_names"]),
    }
    others = OTHERS.get(name, {}) if facts["input"]["fit"] == "stretch" else {}  # as they do it
    written = {"python": PYTHON[name], **others}
    return {language: code.format(**values) for language, code in written.items()}
