"""The code in `docs/loader.md` runs as it stands."""

import os
import subprocess
import sys
from pathlib import Path

from tests.test_docs import code_blocks

DOCUMENT = Path(__file__).parent.parent / "docs" / "loader.md"


def test_the_example_runs(photos):
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = code_blocks(text, "python")
    assert len(blocks) == 2
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=photos.parent,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(DOCUMENT.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    where, report = done.stdout.splitlines()
    assert where == "36 images decoded once at 256x256 pixels, in memory (7 MB)"
    assert report.startswith("72 images in ")
    assert report.endswith("% of the time")
