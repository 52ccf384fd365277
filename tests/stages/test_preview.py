"""`cvpipe preview`: what it takes, writes and prints, and how it refuses."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe
from cvpipe.cli import main
from cvpipe.config import validate_config
from cvpipe.errors import InputError
from cvpipe.sections import AugmentSection
from cvpipe.stages.preview import preview, training_rows
from tests.report.test_report import Page

NASTY = "<b>&"
UNUSED = "No contender trains on augmented views: each looks at every image once, as it is."
PIPELINE = """
threads = 2
[data]
root = "pets"
[augment]
preset = "natural"
{augment}
[split]
careless = false
{split}
[[contender]]
name = "majority"
classifier = "majority"
[evaluate]
resamples = 100
"""


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A current folder with images in two classes, whose names are markup."""
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        label = ("cat", NASTY)[number % 2]
        path = tmp_path / "pets" / label / f"{NASTY}{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_pipeline(path, augment="", split=""):
    path.write_text(PIPELINE.format(augment=augment, split=split))
    return path


# What is written and printed.


def test_a_folder_gives_a_page_beside_the_user(desk, capsys):
    code, out, err = call(
        capsys, "preview", "pets", "--set", "augment.preset=microscopy", "--images", "3"
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        "preset microscopy: sections seen from above: all eight symmetries keep the label, stains "
        "vary a"
    )
    assert "settings: crop = resized, min_area = 0.8" in out
    assert lines[-2:] == [UNUSED, "page: pets-preview.html"]
    text = (desk / "pets-preview.html").read_text("utf-8")
    page = Page(text)
    assert f"{NASTY} {NASTY}/{NASTY}" in page.text
    assert text.count("<b>") == 1  # around the name of the preset
    assert UNUSED in page.text
    assert text.count("<img ") == 3 * 8


def test_a_pipeline_file_says_what_is_shown_and_settings_change_it(desk, capsys):
    write_pipeline(desk / "pets.toml", "hue = 0.25")
    code, out, _ = call(
        capsys, "preview", "pets.toml", "--json", "--images", "2", "--views", "3",
        "--set", "augment.hue=0.5", "--out", "views.html",
    )  # fmt: skip
    told = json.loads(out)
    assert code == 0
    assert told["page"] == "views.html"
    assert told["preset"] == ""
    assert told["used_by"] == []
    assert told["settings"]["hue"] == 0.5
    assert told["settings"]["saturation"] == 0.2
    assert list(told["settings"]) == list(AugmentSection.model_fields)
    assert sorted(image["label"] for image in told["images"]) == sorted(["cat", NASTY])
    assert [len(image["views"]) for image in told["images"]] == [3, 3]
    assert all("hue" in views for image in told["images"] for views in image["views"])
    assert (desk / "views.html").exists()
    assert not (desk / "pets-preview.html").exists()


def test_quiet_prints_the_page_alone(desk, capsys):
    code, out, err = call(capsys, "preview", "pets", "--quiet")
    assert (code, out, err) == (0, "page: pets-preview.html\n", "")


def test_without_settings_it_says_so(desk, capsys):
    _, out, _ = call(capsys, "preview", "pets")
    assert "preset none: every image as it is" in out
    assert "settings: all off" in out
    assert "try --set augment.preset=natural" in out
    assert "as it is" in (desk / "pets-preview.html").read_text("utf-8")


def test_the_same_page_again_whatever_the_threads(desk):
    settings = ["augment.preset=natural", "augment.cutmix=0.5"]
    pages = [
        preview(desk / "pets", [*settings, f"threads={threads}"], out=desk / f"{n}.html").path
        for n, threads in enumerate((1, 1, 2, 8))
    ]
    assert len({page.read_bytes() for page in pages}) == 1


def test_the_images_may_lie_elsewhere(desk):
    write_pipeline(desk / "p.toml")
    shutil.move(desk / "pets", desk / "moved")
    done = preview(desk / "p.toml", data=desk / "moved", num_images=2, num_views=1)
    assert [len(row.cells) for row in done.sheet.rows] == [2, 2]
    assert "<h1>moved</h1>" in done.path.read_text("utf-8")


# Which images.


def config_of(root, **split):
    raw = {"name": "a", "data": {"root": str(root)}, "split": split}
    return validate_config(raw | {"contender": [{"name": "m", "classifier": "majority"}]})


def test_of_a_given_split_only_train_is_shown(desk):
    for part in ("train", "test"):
        shutil.copytree(desk / "pets", desk / "split" / part)
    rows = training_rows(desk / "split", config_of(desk / "split", protocol="given"))
    assert set(rows["split"]) == {"train"}
    assert len(rows) == 12
    assert len(training_rows(desk / "split", config_of(desk / "split"))) == 24
    done = preview(desk / "split", ["augment.preset=natural"], num_images=24, num_views=1)
    assert {row.image_id.split("/")[0] for row in done.sheet.rows} == {"train"}


def test_what_the_file_excludes_is_not_shown(desk):
    name = f"cat/{NASTY}0.jpg"
    config = config_of(desk / "pets")
    data = config.data.model_copy(update={"exclude": (name,)})
    rows = training_rows(desk / "pets", config.model_copy(update={"data": data}))
    assert len(rows) == 11
    assert name not in set(rows["image_id"])


def test_a_table_does_as_well(desk):
    ids = sorted(p.relative_to(desk / "pets").as_posix() for p in desk.rglob("*.jpg"))
    table = pd.DataFrame({"path": ids, "label": ["NA", "0"] * 6})
    table.to_csv(desk / "pets" / "table.csv", index=False)
    done = preview(desk / "pets" / "table.csv", num_images=2, num_views=1)
    assert [row.label for row in done.sheet.rows] == ["0", "NA"]


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["there is no folder 'nowhere'"]),
        (["nowhere.toml"], ["there is no pipeline file 'nowhere.toml'"]),
        (["pets", "--set", "augment.preset=natrual"], ["'natrual'", "did you mean 'natural'"]),
        (["pets", "--set", "augment.hug=0.1"], ["augment.hug", "did you mean 'hue'"]),
        (["pets", "--set", "augment.hue=0.7"], ["augment.hue", "0.5"]),
        (["pets", "--out", "page.png"], ["'page.png'", "must end with .html or .htm"]),
        (["pets", "--out", "folder.html"], ["'folder.html' is a folder", "--out"]),
        (["pets", "--images", "0"], ["--images", "greater than or equal to 1"]),
        (["pets", "--views", "25"], ["--views", "less than or equal to 24"]),
        (["empty"], ["no image was found in the class folders of 'empty'"]),
        (["broken"], ["cannot read the image 'broken/a/x.jpg'", "data.drop_unreadable=true"]),
        ([], ["Missing argument"]),
    ],
)
def test_what_cannot_start_ends_with_2_and_says_why(desk, capsys, arguments, words):
    for name in ("empty/a", "broken/a", "folder.html"):
        (desk / name).mkdir(parents=True)
    (desk / "broken" / "a" / "x.jpg").write_bytes(b"no image")
    code, out, err = call(capsys, "preview", *arguments)
    assert (code, out) == (2, "")
    for word in words:
        assert word in err
    assert not [path for path in desk.iterdir() if path.is_file()]


def test_a_given_split_without_train_is_refused(desk):
    write_pipeline(desk / "p.toml", split='protocol = "given"')
    with pytest.raises(InputError, match=r"split\.protocol is 'given', but the images come with"):
        preview(desk / "p.toml")


def test_help_names_it(capsys):
    assert " preview " in call(capsys, "--help")[1]


# In a run.


def test_a_run_says_that_nobody_looks_and_shows_the_views(desk, capsys):
    write_pipeline(desk / "p.toml")
    code, out, err = call(capsys, "run", "p.toml", "--set", "augment.mixup=0.2")
    assert code == 0
    line = f"[augment] has no effect. {UNUSED}"
    assert err.splitlines().count(line) == 1
    assert line not in out
    run = cvpipe.open_run(next((desk / "runs").glob("p-*")))
    text = run.report_path.read_text("utf-8")
    page = Page(text)
    assert "Augmented views" in page.headings
    assert UNUSED in page.text
    shown = text.split('<section id="views">')[1].split("</section>")[0]
    assert shown.count("<article") == 5
    train = run.manifest().query("split == 'train'")["image_id"]
    escaped = {i.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for i in train}
    named = [part.split("</small>")[0] for part in shown.split('<small class="id">')[1:]]
    assert len(named) == 4
    assert set(named) <= escaped
    call(capsys, "report", run.path)
    assert run.report_path.read_text("utf-8") == text


@pytest.mark.parametrize("setting", ["augment.preset=none", "augment.min_area=0.9"])
def test_a_run_without_augmentation_says_nothing_of_it(desk, capsys, setting):
    pipeline = write_pipeline(desk / "p.toml")
    pipeline.write_text(pipeline.read_text().replace('preset = "natural"', ""))
    code, _, err = call(capsys, "run", "p.toml", "--set", setting)
    assert code == 0
    assert "augment" not in err
    run = cvpipe.open_run(next((desk / "runs").glob("p-*")))
    assert "ugmented views" not in run.report_path.read_text("utf-8")
