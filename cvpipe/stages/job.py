"""What every stage of a run is handed, and how the stages talk to whoever watches."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from cvpipe.config import Config
from cvpipe.runs import Run

Item = TypeVar("Item")


class Watcher(Protocol):
    """Whoever watches a run: the command line, a notebook, or nobody."""

    def say(self, text: str) -> None:
        """Receive a line about what is being done."""

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterable[Item]:
        """Pass items through, showing how far they are."""


class Nobody:
    """A watcher that shows nothing."""

    def say(self, text: str) -> None:
        """Ignore the line."""

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterable[Item]:  # noqa: ARG002
        """Pass the items through."""
        return items


@dataclass(frozen=True)
class Job:
    """A run in the making.

    Attributes:
        config: What is to be done.
        root: Folder of the images.
        run: Where everything is written.
        watcher: Who is told.
        base: Folder at which paths of the config start: that of the pipeline file.
    """

    config: Config
    root: Path
    run: Run
    watcher: Watcher
    base: Path = Path()

    @contextmanager
    def timed(self, stage: str, title: str) -> Iterator[None]:
        """Announce a stage and record its duration in the run."""
        self.watcher.say(title)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.run.record_seconds(stage, time.perf_counter() - started)
