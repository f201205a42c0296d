"""Runs in TensorBoard: their records written again as its event files, once or for as long as they go on.

    RUN/tensorboard/events.out.tfevents...    of every metrics.jsonl there is

The records stay the only source: a search does not know that somebody looks at it, and runs of last month can be looked
at as well.
"""

import contextlib
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bayesarch.errors import ConfigError, RunError
from bayesarch.runs import RunFolder
from bayesarch.spaces import SPACES, Space

__all__ = ["Mirror", "follow", "mirrors", "scalars"]

SECONDS = 5.0
"""Between two looks at runs that go on."""

NAME = "tensorboard"
"""The folder, in the run's, that the event files go to."""


def scalars(record: Mapping[str, Any], space: Space | None = None) -> Iterator[tuple[str, float]]:
    """Yield (tag, value) of a record: `accuracy/...`, `loss/...`, `weights/EDGE/OPTION`, everything else `run/...`.

    Args:
        record: a line of metrics.jsonl.
        space: names the weights; None: they are left out.
    """
    for key, value in record.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or key in ("steps", "round"):
            continue
        if math.isfinite(value):
            what, _, kind = key.rpartition("_")
            yield (f"{kind}/{what}" if kind in ("accuracy", "loss") and what else f"run/{key}"), float(value)
    rows = record.get("weights")
    if space is not None and isinstance(rows, list) and len(rows) == len(space.choices):
        for choice, row in zip(space.choices, rows, strict=True):
            for option, weight in zip(choice.options, row, strict=False):
                yield f"weights/{choice.name}/{option}", float(weight)


class Mirror:
    """One run's event files.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.written = folder, 0
        self._writer: Any = None
        config = folder.read_config()
        self.space = SPACES.get(config.get("space", {}).get("name", ""))
        self.began = (folder.path / "config.yaml").stat().st_mtime  # records have seconds since then

    def update(self) -> int:
        """Write what has come since the last time, and return how many records are there.

        A run that was cut back to its checkpoint, as resuming does, is written anew.
        """
        records = self.folder.read_metrics()
        if self._writer is None or len(records) < self.written:
            self._begin()
        for record in records[self.written :]:
            step = int(record.get("steps", record.get("epoch", self.written)))
            when = self.began + float(record.get("seconds", 0.0))
            for tag, value in scalars(record, self.space):
                self._writer.add_scalar(tag, value, step, walltime=when)
        self.written = len(records)
        self._writer.flush()
        return self.written

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _begin(self) -> None:
        self.close()
        place = self.folder.path / NAME
        shutil.rmtree(place, ignore_errors=True)
        self._writer, self.written = _writer(place), 0


def _writer(place: Path) -> Any:
    """Return TensorBoard's writer.

    Raises:
        ConfigError: if TensorBoard is not installed.
        RunError: if the place cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError('needs TensorBoard: pip install "bayesarch[tensorboard]"') from None
    try:
        return SummaryWriter(str(place))
    except OSError as error:
        raise RunError(f"cannot write {place}: {error.strerror or error}") from None


def mirrors(path: str | os.PathLike[str], known: Mapping[Path, Mirror] | None = None) -> dict[Path, Mirror]:
    """Return a mirror of every run at and below a folder that has records: repeats and members too.

    Args:
        path: a run, or a folder of runs.
        known: those that are there already.

    Raises:
        RunError: if there is no such folder.
    """
    if not Path(path).is_dir():
        raise RunError(f"no folder at {path}; name a run, or a folder that holds some")
    found = dict(known or {})
    for file in sorted(Path(path).rglob("metrics.jsonl")):
        if file.parent not in found:
            with contextlib.suppress(RunError):  # one damaged run does not hide the others
                found[file.parent] = Mirror(RunFolder(file.parent))
    return found


def follow(path: str | os.PathLike[str], stop: threading.Event | None = None) -> Iterator[tuple[int, int]]:
    """Write the event files of all runs at and below a folder; yield (runs, records) after each look.

    Args:
        path: a run, or a folder of runs.
        stop: look again every few seconds, at new runs too, until this is set; None: once.

    Raises:
        ConfigError: if TensorBoard is not installed.
        RunError: if there is no such folder.
    """
    known: dict[Path, Mirror] = {}
    try:
        while True:
            known = mirrors(path, known)
            yield len(known), sum(mirror.update() for mirror in known.values())
            if stop is None or stop.wait(SECONDS):
                return
    finally:
        for mirror in known.values():
            mirror.close()
