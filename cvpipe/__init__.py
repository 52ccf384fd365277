"""Compare hand-crafted features with ImageNet networks on your own images.

In a few lines (the README has them too, where they are executed):

    run = cvpipe.run("photos/")
    run.metrics(), run.report_path
    cvpipe.load(run.path).predict_proba(["new.jpg"])

Public names are imported on first use, so `import cvpipe` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvpipe.errors import GateError, InputError
    from cvpipe.runs import open_run
    from cvpipe.stages.fetch import fetch
    from cvpipe.stages.predict import load
    from cvpipe.stages.run import run

__all__ = ["GateError", "InputError", "fetch", "load", "open_run", "run"]

_HOMES = {
    "GateError": "cvpipe.errors",
    "InputError": "cvpipe.errors",
    "fetch": "cvpipe.stages.fetch",
    "load": "cvpipe.stages.predict",
    "open_run": "cvpipe.runs",
    "run": "cvpipe.stages.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cvpipe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
