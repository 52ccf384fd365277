"""`docs/views.md` says what the code does."""

import re
import tomllib
from pathlib import Path

from cvpipe.inference.crops import VIEWS, num_views, sizes_to_load
from cvpipe.report.content import VIEW_COLUMNS
from cvpipe.runs import Run
from cvpipe.sections import EvaluateSection

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "views.md").read_text(encoding="utf-8")
WORDS = " ".join(DOCUMENT.split())

SIZES = {
    (7,): "the size",
    (8,): "8/7 of the size",
    (7, 8, 9): "the size, 8/7 and 9/7 of it",
}


def test_the_example_is_valid():
    (block,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    section = EvaluateSection.model_validate(tomllib.loads(block)["evaluate"], strict=False)
    assert section.views == ("single", "flip", "ten_crop")
    assert set(section.views) <= set(VIEWS)


def test_every_view_is_listed_with_its_passes_and_sizes():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.*?) \|", DOCUMENT, re.MULTILINE)
    assert [row[0] for row in rows] == list(VIEWS)
    for view, passes, sizes in rows:
        assert int(passes) == num_views(view)
        assert sizes == SIZES[tuple(height for height, _ in sizes_to_load(view, (7, 7)))]
    larger = sizes_to_load("multi_scale", (224, 224))[1:]
    assert larger == [(256, 256), (288, 288)]
    assert "for 224 pixels the image is brought to 256," in WORDS
    assert "and to 288" in WORDS


def test_files_and_columns_are_those_of_the_code():
    run = Run(Path("runs/a"))
    assert run.view_path("<name>").relative_to(run.path).as_posix() in DOCUMENT
    assert f"`{run.views_path.name}`" in DOCUMENT
    table = DOCUMENT.split("| column | |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", table))
    ends = {f"{metric}{end}" for metric in ("accuracy", "log_loss") for end in ("_low", "_high")}
    assert named - {"_low", "_high"} | ends == set(VIEW_COLUMNS)


def test_the_document_can_be_found():
    assert "(docs/views.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", DOCUMENT):
        assert (ROOT / "docs" / target).exists(), target
