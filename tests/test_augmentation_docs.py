"""`docs/augmentation.md` lists the settings and presets as the code has them."""

import re
import tomllib
from pathlib import Path

from cvpipe.augment_presets import AUGMENT_PRESETS
from cvpipe.sections import AugmentSection

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")


def rows_below(heading: str) -> list[list[str]]:
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_preset_stands_with_its_reason_and_settings():
    rows = rows_below("Presets")
    assert [row[0].strip("`") for row in rows] == list(AUGMENT_PRESETS)
    for name, reason, settings in rows:
        preset = AUGMENT_PRESETS[name.strip("`")]
        assert reason == preset.reason
        assert tomllib.loads("\n".join(re.findall(r"`(.*?)`", settings))) == preset.settings


def test_every_setting_stands_with_its_default():
    fields = AugmentSection.model_fields
    rows = rows_below("Settings")
    assert [row[0].strip("`") for row in rows] == list(fields)
    for name, default, words in rows:
        value, expected = tomllib.loads(f"value = {default}")["value"], fields[name.strip("`")]
        assert value == (expected.default if name != "`max_stretch`" else 1.33)
        assert words


def test_the_example_means_what_the_text_says():
    (block,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    section = AugmentSection.model_validate(tomllib.loads(block)["augment"])
    plain = AugmentSection.model_validate({"preset": "natural"})
    assert section == plain.model_copy(update={"horizontal_flip": 0.0})


def test_the_document_can_be_found():
    assert "(docs/augmentation.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
