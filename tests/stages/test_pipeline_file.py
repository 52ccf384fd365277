"""Choices become TOML that says the same, whatever text they hold."""

import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.stages.pipeline_file import Block, Choice, comment, pipeline_text, toml_value


@settings(max_examples=100, deadline=None)
@given(text=st.text().filter(lambda text: text.encode(errors="replace").decode() == text))
def test_any_text_survives_toml(text):
    value = [text, text[::-1]]
    written = f"{comment(text)}\nx = {toml_value(value)}\n{comment(text)}"
    assert tomllib.loads(written) == {"x": value}


def test_comments_are_broken_into_lines():
    lines = comment("word " * 60).splitlines()
    assert len(lines) == 4
    assert all(line.startswith("# word") and len(line) <= 100 for line in lines)
    assert comment("") == ""


def test_a_choice_without_a_reason_has_no_comment():
    block = Block("x", [Choice("a", 1), Choice("b", 2, "why")])
    assert pipeline_text([block], ["top"]) == "# top\n\n[x]\na = 1\n# why\nb = 2\n"
