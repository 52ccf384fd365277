"""What the report page is told about a run."""

import numpy as np
from PIL import Image

import cvpipe
from cvpipe.data.images import DecodeRule
from cvpipe.stages.report import THUMBNAIL_PIXELS, collect_content, thumbnail
from cvpipe.stages.risks import find_warnings

PIPELINE = """
threads = 2
[data]
root = "images"
[images]
white_level = 1023
[split]
careless = false
[[contender]]
name = "majority"
classifier = "majority"
[evaluate]
resamples = 100
"""


def write_dark(path, seed):
    """Write noise of 10 bits into a 16-bit PNG: by the usual rule it is nearly black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(512, 1024, (20, 24), dtype=np.uint16)
    Image.fromarray(values).save(path)
    return path


def test_thumbnails_are_made_by_the_rule_of_the_run(tmp_path):
    for number in range(12):
        write_dark(tmp_path / "images" / ("0" if number % 2 else "NA") / f"{number}.png", number)
    (tmp_path / "p.toml").write_text(PIPELINE)
    run = cvpipe.run(tmp_path / "p.toml", runs_path=tmp_path / "runs")
    content = collect_content(run, tmp_path / "images")
    pictures = [image for images in content.data.samples.values() for image in images]
    pictures += [mistake.image for mistake in content.mistakes]
    assert content.mistakes  # the classes are of one size, so a constant answer errs
    for picture in pictures:
        assert 180 < picture.mean() < 200  # 767.5 * 255 / 1023 is 191; over 65535 it is 3
    assert content.split_story == (
        "They were divided at random by class, with groups and near-duplicates kept together."
    )
    # No contender looks at a pixel, so no label is doubted.
    assert run.suspects().empty
    assert not [text for text in find_warnings(run) if "another label" in text]


def test_a_thumbnail_is_as_high_as_the_page_shows(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((2 * THUMBNAIL_PIXELS, 100, 3), np.uint8)).save(path)
    assert thumbnail(path, DecodeRule()).shape == (THUMBNAIL_PIXELS, 50, 3)
    assert thumbnail(write_dark(tmp_path / "b.png", 0), DecodeRule()).shape == (20, 24, 3)
