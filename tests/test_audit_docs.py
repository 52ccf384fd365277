"""`docs/audit.md` shows the kinds of findings as the code has them.

`python -m tests.test_audit_docs` writes the table into the page.
"""

import re
from pathlib import Path

from cvpipe.data import quality
from cvpipe.data.audit import NOTEWORTHY_FRACTION
from cvpipe.data.findings import FINDING_COLUMNS, KINDS, SEVERITIES

PAGE = Path(__file__).parents[1] / "docs" / "audit.md"
TABLE = re.compile(r"(<!-- kinds: begin [^\n]* -->\n).*(<!-- kinds: end -->\n)", re.DOTALL)


def kinds_table() -> str:
    """Write the kinds as Markdown, the gravest first, otherwise in the order of the code."""
    ranked = sorted(KINDS.items(), key=lambda item: SEVERITIES.index(item[1].severity))
    rows = [
        f"| `{name}` | {kind.severity} | {kind.meaning} | {kind.action} |" for name, kind in ranked
    ]
    return "\n".join(["| kind | severity | meaning | what to do |", "|---|---|---|---|", *rows, ""])


def with_table(page: str) -> str:
    return TABLE.sub(lambda match: match[1] + kinds_table() + match[2], page)


def test_the_page_shows_every_kind():
    page = PAGE.read_text("utf-8")
    assert len(TABLE.findall(page)) == 1
    assert page == with_table(page), "run: python -m tests.test_audit_docs"
    for name in KINDS:
        assert f"| `{name}` |" in page


def test_the_page_names_columns_and_figures():
    page = PAGE.read_text("utf-8")
    for name in (*FINDING_COLUMNS, *quality.QUALITY_COLUMNS):
        assert f"\n| `{name}` |" in page


def test_the_page_states_the_bounds_of_the_code():
    page = " ".join(PAGE.read_text("utf-8").split())
    for text in (
        f"is below -{quality.MAX_Z_SCORE} ",
        f"fewer than {quality.MIN_IMAGES} images",
        f"{quality.THUMBNAIL_PIXELS} x {quality.THUMBNAIL_PIXELS} pixels",
        f"from {NOTEWORTHY_FRACTION:.0%} of".replace("%", " %"),
    ):
        assert text in page
    assert quality.MIN_RATIO == 2  # "at most half the median"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
