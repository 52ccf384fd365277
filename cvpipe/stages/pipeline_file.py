"""Write a pipeline file as TOML, with a reason beside each choice."""

import json
import textwrap
from typing import Any, NamedTuple

LINE_LENGTH = 98


class Choice(NamedTuple):
    """A key of a pipeline file.

    Attributes:
        key: As in `cvpipe.sections`.
        value: What is chosen: text, number, truth value, or a list of texts.
        reason: Why; shown as a comment above it. Empty where that of the section says all.
    """

    key: str
    value: Any
    reason: str = ""


class Block(NamedTuple):
    """A section of a pipeline file.

    Attributes:
        header: Its name: `""` for the top level, `"contender"` for each of the contenders.
        choices: Its keys.
        reason: A comment above the header.
    """

    header: str
    choices: list[Choice]
    reason: str = ""


def raw_config(blocks: list[Block]) -> dict[str, Any]:
    """Put the choices of a pipeline file into the shape that a TOML parser would give them."""
    raw: dict[str, Any] = {}
    for block in blocks:
        values = {choice.key: choice.value for choice in block.choices}
        if block.header == "contender":
            raw.setdefault("contender", []).append(values)
        elif block.header:
            raw[block.header] = values
        else:
            raw |= values
    return raw


def pipeline_text(blocks: list[Block], header: list[str]) -> str:
    """Write a pipeline file as TOML.

    Args:
        blocks: Its sections, the top level first.
        header: Comments at the top, one paragraph each.
    """
    paragraphs = ["\n".join(comment(line) for line in header)]
    for block in blocks:
        lines = [comment(block.reason)] if block.reason else []
        if block.header:
            repeated = block.header == "contender"
            lines.append(f"[[{block.header}]]" if repeated else f"[{block.header}]")
        for choice in block.choices:
            lines += [comment(choice.reason)] if choice.reason else []
            lines.append(f"{choice.key} = {toml_value(choice.value)}")
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs) + "\n"


def comment(text: str) -> str:
    """Write text as lines of comment; control characters, which TOML forbids, are escaped."""
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return "\n".join(f"# {line}" for line in textwrap.wrap(printable, LINE_LENGTH))


def toml_value(value: Any) -> str:
    r"""Write a text, number, truth value or list of texts as TOML.

    Example:
        >>> print(toml_value(['a "b"', "c\\d"]), toml_value(True), toml_value(0.2))
        ["a \"b\"", "c\\d"] true 0.2
    """
    # JSON's texts and lists are TOML's, apart from one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
