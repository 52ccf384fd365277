"""What a caller can fix, and what a check found.

Everything else that goes wrong is a defect of cvpipe and keeps its traceback.
"""

import difflib
import importlib.util
from collections.abc import Iterable, Mapping


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message says what was given, what was expected and what to do. The command
    line prints it without a traceback and exits with code 2.
    """


class TooLittleToLearnError(InputError):
    """There are too few images for what is to be learned from them."""


class GateError(Exception):
    """The command ran, and what it found is negative: an audit error, a failed parity check.

    The command line prints it without a traceback and exits with code 1.
    """


def nearest_name(name: str, choices: Iterable[str]) -> str:
    """Say which known names `name` may have meant, as the end of an error message.

    Args:
        name: What was given.
        choices: What would have been accepted.

    Returns:
        `did you mean 'hog'?` when one choice is close, otherwise
        `choose one of ['hog', ...].` with all choices sorted, or that there are none.

    Example:
        >>> nearest_name("hgo", ["hog", "majority"])
        "did you mean 'hog'?"
        >>> nearest_name("x", ["hog", "majority"])
        "choose one of ['hog', 'majority']."
    """
    known = sorted(choices)
    if not known:
        return "there is none to choose from."
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {known}."


def check_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return `name` if it is among `choices`.

    Args:
        kind: What the name names, for the message: `"backbone"`.
        name: What was given.
        choices: What is accepted.

    Raises:
        InputError: The name is unknown; the message has the nearest one.
    """
    known = list(choices)
    if name not in known:
        raise InputError(f"unknown {kind} {name!r}; {nearest_name(name, known)}")
    return name


def check_installed(what: str, packages: Mapping[str, str], extra: str) -> None:
    """Refuse what needs packages that are not there; nothing is imported.

    Args:
        what: What needs them, for the message: `"the runtime 'openvino'"`.
        packages: Name of each package, and of a module that it has.
        extra: Extra of cvpipe that they belong to; empty if cvpipe itself needs them.

    Raises:
        InputError: One is missing.

    Example:
        >>> check_installed("the runtime 'tensorflow'", {"pandas": "pandas"}, extra="")
    """
    missing = [p for p, module in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        wanted = f"cvpipe[{extra}]" if extra else "cvpipe"
        raise InputError(
            f"{what} needs {' and '.join(missing)}, which is not installed; "
            f'install it with: python -m pip install "{wanted}"'
        )
