"""What the documents say is executed, or compared with the code."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from cvpipe.config import load_config
from tests.conftest import run_cvpipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def targets_of_makefile() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_every_make_target_that_a_document_names_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = re.findall(r"^make ([a-z -]+)|`make ([a-z-]+)", text, re.MULTILINE)
    named = {target for pair in lines for words in pair for target in words.split()}
    assert named
    assert named <= targets_of_makefile()


def test_make_help_lists_every_target():
    answer = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = {line.split()[0] for line in answer.stdout.splitlines()}
    assert listed == targets_of_makefile()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "data/README.md"])
def test_links_to_files_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.toml")), ids=lambda p: p.stem)
def test_pipelines_are_valid_and_say_command_runtime_and_result(path):
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    for word in ("Command:", "Runtime:", "Result:"):
        assert word in header
    config = load_config(path)
    assert config.name == path.stem
    row = r"^#   (\w+) +(?:[a-z]\w* +)?[\d.]+% \("  # some have a column for the view
    listed = re.findall(row, header, re.MULTILINE)
    assert listed == [contender.name for contender in config.contender]


@pytest.mark.parametrize("name", ["brain_mri", "digits", "solar_cells"])
def test_the_tables_of_the_readme_agree_with_the_headers_of_the_pipelines(name):
    """`make results` writes the former, a slow test runs the latter."""
    header = (ROOT / "pipelines" / f"{name}.toml").read_text(encoding="utf-8").split("\n\n")[0]
    cell = r"([\d.]+% \([\d.]+% to [\d.]+%\))"
    claimed = re.findall(rf"^#   (\w+) +{cell} +{cell}", header, re.MULTILINE)
    assert len(claimed) == 8
    (block,) = re.findall(rf"\*\*{name}\*\*, .*?\n\n(.*?)\n\n", README, re.DOTALL)
    rows = [[part.strip(" *") for part in line.split("|")[1:-1]] for line in block.splitlines()]
    assert rows[0] == ["contender", "test", "5 folds", "careless split"]
    assert [(row[0], row[1], row[3]) for row in rows[2:]] == claimed
    assert sum("**" in line for line in block.splitlines()) == 1


def test_the_lock_holds_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    locked = {
        re.split(r"[=; ]", line)[0]
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if not line.startswith("#")
    }
    assert {re.split(r"[>=<\[]", name)[0] for name in wanted} <= locked


@pytest.fixture(scope="module")
def desk(photos, tmp_path_factory) -> Path:
    """A working directory with the photos and the new image that the README speaks of."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(photos, folder / "photos")
    Image.new("RGB", (64, 48), (200, 120, 40)).save(folder / "new.jpg")
    return folder


@pytest.mark.slow
def test_the_commands_of_the_readme_work(desk):
    commands = [
        line.split("#")[0].split()
        for block in code_blocks(README, "sh")
        for line in block.splitlines()
        if line.startswith("cvpipe ")
    ]
    assert len(commands) >= 7
    for _, *arguments in commands:
        runs = sorted((desk / "runs").glob("photos-*"))
        actual = [
            re.sub(r"runs/photos-3f9a1c", str(runs[0].relative_to(desk)) if runs else "", a)
            for a in arguments
        ]
        answer = run_cvpipe(*actual, cwd=desk)
        assert answer.returncode == 0, (arguments, answer.stderr)


@pytest.mark.slow
def test_the_python_of_the_readme_works(desk):
    (block,) = code_blocks(README, "python")
    answer = subprocess.run(
        [sys.executable, "-c", block], cwd=desk, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "report.html" in answer.stdout
