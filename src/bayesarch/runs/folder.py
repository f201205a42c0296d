"""The run folder: visible, self-contained, readable without us and without torch.

    runs/<name>/
      config.yaml            every setting in force
      environment.json       versions, machine, device, threads
      data.json              splits: sizes, fingerprint, input shape, classes
      status.json            running | interrupted | failed | finished, and how far
      metrics.jsonl          one record per epoch
      posterior.json         the posterior; no times, no paths
      summary.json           what the final table shows
      architectures/*.json   what was found
      networks/*.safetensors inherited weights of what was found
      checkpoints/last.safetensors
      lookup.json            what a benchmark's table says of it, where that was asked
      repeats/*/             the runs of a repeated search, each a run folder
      report.html, log.txt

Files are written whole or not at all: to a neighbour first, flushed to disk, then renamed.
"""

import contextlib
import errno
import io
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bayesarch.errors import RunError

__all__ = ["FORMAT", "RunFolder", "free_path", "now", "run_folders_in", "write_arrays", "write_atomically"]

FORMAT = 1
"""Version of the folder's layout; a folder of another one is refused, not guessed at."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        RunError: if the disk is full or the place cannot be written; nothing is left behind.
    """
    neighbour = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with neighbour.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            neighbour.unlink(missing_ok=True)
        raise RunError(explain(path, error)) from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file of plain arrays whole or not at all.

    Raises:
        RunError: if it cannot be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def explain(path: Path, error: OSError) -> str:
    """Return what went wrong with a path, and what to try."""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk of {path}; free some and resume, or choose another --out"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot write {path}: {error.strerror}; choose another --out"
    return f"cannot write {path}: {error.strerror or error}"


def to_json(record: Any) -> str:
    """Return deterministic JSON: sorted keys, numbers that are not finite as null."""
    return json.dumps(_tidy(record), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _tidy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tidy(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class RunFolder:
    """One run on disk. Made by `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """Make a new, empty run folder.

        Raises:
            RunError: if something is there already or the place cannot be written.
        """
        target = Path(path)
        try:
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise RunError(
                    f"{target} is not empty; choose another --out, or continue it: bayesarch resume {target}"
                )
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(explain(target, error)) from None
        folder = cls(target)
        folder.write_status(state="new")
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """Open an existing run folder.

        Raises:
            RunError: if there is none or it is of another version.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise RunError(f"no run folder at {folder.path}")
        if not folder.has("status.json"):
            inside = [str(path) for path in run_folders_in(folder.path)]
            holds = f"; it holds {', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}" if inside else ""
            raise RunError(f"{folder.path} is no run folder: status.json is missing{holds}")
        status = folder.read_json("status.json")
        if status.get("format") != FORMAT:
            raise RunError(
                f"{folder.path} has run format {status.get('format')!r}, this bayesarch reads {FORMAT}; "
                "use the version named in its environment.json"
            )
        return folder

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    def write_json(self, name: str, record: Any) -> None:
        """Write a JSON file atomically."""
        write_atomically(self.path / name, to_json(record).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file's record.

        Raises:
            RunError: if it is missing or damaged.
        """
        path = self.path / name
        try:
            record = json.loads(path.read_text())
        except FileNotFoundError:
            raise RunError(f"{self.path} is no finished run folder: {name} is missing") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is damaged: {error}") from None
        if not isinstance(record, dict):
            raise RunError(f"{path} is damaged: expected a record, got {type(record).__name__}")
        return record

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        return (self.path / name).is_file()

    def write_status(self, **fields: Any) -> None:
        """Write status.json."""
        self.write_json("status.json", {"format": FORMAT, **fields})

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml."""
        write_atomically(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())

    def read_config(self) -> dict[str, Any]:
        """Return config.yaml's record.

        Raises:
            RunError: if it is missing or damaged.
        """
        path = self.path / "config.yaml"
        try:
            record = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise RunError(f"{path} cannot be read: {error}") from None
        if not isinstance(record, dict):
            raise RunError(f"{path} is damaged: expected settings")
        return record

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl.

        Raises:
            RunError: if it cannot be written.
        """
        line = json.dumps(_tidy(record), sort_keys=True, allow_nan=False) + "\n"
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(line)
        except OSError as error:
            raise RunError(explain(self.path / "metrics.jsonl", error)) from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all whole records of metrics.jsonl; a torn last line, as a kill leaves it, is passed over."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        records = []
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def keep_metrics(self, count: int) -> None:
        """Cut metrics.jsonl back to its first `count` records, as a checkpoint knows them."""
        lines = (json.dumps(record, sort_keys=True) + "\n" for record in self.read_metrics()[:count])
        write_atomically(self.path / "metrics.jsonl", "".join(lines).encode())

    def log(self, lines: Iterable[str]) -> None:
        """Add lines to log.txt."""
        try:
            with (self.path / "log.txt").open("a") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            raise RunError(explain(self.path / "log.txt", error)) from None


def now() -> str:
    """Return date and time as log.txt has them."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def run_folders_in(path: str | os.PathLike[str], *, depth: int = 3) -> list[Path]:
    """Return the run folders in a folder and its sub-folders, the one that changed last at the end.

    What lies within a run (members, repeats) belongs to it and is not listed.

    Args:
        path: the folder.
        depth: levels of sub-folders that are looked through.
    """
    return sorted(_below(Path(path), depth), key=lambda folder: ((folder / "status.json").stat().st_mtime, folder))


def _below(path: Path, depth: int) -> Iterator[Path]:
    try:
        folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    except OSError:  # a folder that cannot be read holds no runs that could be
        return
    for folder in folders:
        if (folder / "status.json").is_file():
            yield folder
        elif depth > 1:
            yield from _below(folder, depth - 1)


def free_path(stem: str | Path) -> Path:
    """Return `stem`, with a number behind it if that is taken."""
    candidate, number = Path(stem), 1
    while candidate.exists():
        number += 1
        candidate = Path(f"{stem}-{number}")
    return candidate
