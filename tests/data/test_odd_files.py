"""Every broken or odd file gets the one right finding: no crash, no hang, no second remark."""

import numpy as np
import pytest
from PIL import Image

from cvpipe.config import validate_config
from cvpipe.data.findings import KINDS
from cvpipe.data.images import SUFFIX_FORMATS
from cvpipe.data.manifest import scan_images
from cvpipe.stages.audit import audit_rows
from cvpipe.stages.job import Nobody
from tests.data.odd_files import write_odd_files

# What is said of a file in comparison with others, not of the file by itself.
COMPARISONS = ("blurred", "dark", "bright", "near_duplicates", "near_duplicate_labels")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    expected = write_odd_files(root / "odd")
    (root / "sound").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "sound" / "noise.png")
    config = validate_config(
        {"name": "odd", "data": {"root": "odd"}, "contender": [{"name": "c", "classifier": "m"}]}
    )
    audit = audit_rows(scan_images(root, "folders"), root, config, Nobody())
    found = {}
    for row in audit.findings.itertuples():
        if row.image_id and row.finding not in COMPARISONS:
            found.setdefault(row.image_id.removeprefix("odd/"), []).append(row.finding)
    return expected, found, audit


def test_each_file_has_exactly_its_finding(audited):
    expected, found, _ = audited
    wanted = {name: [finding] if finding else [] for name, finding in expected.items()}
    assert {name: found.get(name, []) for name in wanted} == wanted
    assert set(found) <= set(wanted)


def test_the_collection_is_wide(audited):
    expected, _, _ = audited
    assert len(expected) >= 60
    assert set(expected.values()) - {""} <= KINDS.keys()
    assert len(set(expected.values())) >= 17
    suffixes = {name[name.rfind(".") :].lower() for name in expected}
    assert suffixes >= set(SUFFIX_FORMATS) - {".tiff", ".dicom"}


def test_every_error_says_why_and_what_to_do(audited):
    *_, audit = audited
    files = audit.errors[audit.errors["image_id"] != ""]
    assert len(files) >= 30
    assert (files["reason"].str.len() > 10).all()
    assert not files["reason"].str.contains(r"\.$|Traceback|\n").any()
    assert (files["action"].str.len() > 10).all()
