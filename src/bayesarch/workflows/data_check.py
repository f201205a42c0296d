"""`data check PATH`: what is there, what is wrong with it, and a configuration to start from. Reads every file once."""

import hashlib
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from bayesarch.data import DataConfig, class_files, given_folders, holds_cifar, load
from bayesarch.errors import BayesarchError, DataError

__all__ = ["check_data"]

SPLITS_NEEDED = 4
"""Examples a class needs to appear in every split."""
UNBALANCED = 3.0
"""Largest class over smallest from which class weights are suggested."""
NAMED = 20
"""Faults of one kind that are named one by one; the rest are counted."""


class _Findings:
    """What is found, split by split."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.sizes: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.seen: dict[bytes, list[tuple[str, str, str]]] = defaultdict(list)
        self.faults: dict[str, list[str]] = defaultdict(list)

    def add(self, split: str, label: str, name: str, pixels: np.ndarray, mode: str) -> None:
        """Take in one image."""
        self.counts[split][label] += 1
        self.sizes["x".join(map(str, pixels.shape[:2]))] += 1
        self.modes[mode] += 1
        digest = hashlib.sha256(
            f"{pixels.shape}{pixels.dtype}".encode() + np.ascontiguousarray(pixels).tobytes()
        ).digest()
        self.seen[digest].append((split, label, name))


def check_data(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a data source holds, its faults, and settings to start from.

    Args:
        source: as `search --data` takes it.

    Returns:
        `splits` (name -> class -> count), `sizes` and `modes` (-> count), `faults` (list of sentences: the search would
        refuse or be misled), `remarks`, `suggested` (dotted settings), `usable`.

    Raises:
        DataError: if there is nothing to check.
    """
    found, path, remarks = _Findings(), Path(source), []
    if path.is_dir() and not holds_cifar(path):
        _look_at_folder(path, found)
    else:
        _look_at_arrays(str(source), found)
    _duplicates(found)
    pool = found.counts["train"]
    for label, count in sorted(pool.items()):
        needed = SPLITS_NEEDED - len(found.counts) + 1
        if count < needed:
            found.faults["few"].append(f"class {label!r} has {count} images, {needed} are needed, one for every split")
    if len(pool) < 2:
        found.faults["classes"].append(f"a classifier needs at least two classes; there are {sorted(pool)}")
    ratio = max(pool.values(), default=1) / max(min(pool.values(), default=1), 1)
    if ratio >= UNBALANCED:
        remarks.append(f"unbalanced: the largest class is {ratio:.1f} times the smallest")
    faults = [line for lines in found.faults.values() for line in _some(lines)]
    return {
        "source": str(source),
        "splits": {name: dict(sorted(counter.items())) for name, counter in found.counts.items()},
        "sizes": dict(found.sizes.most_common()),
        "modes": dict(found.modes.most_common()),
        "faults": faults,
        "remarks": remarks,
        "suggested": _suggested(found, ratio, str(source)),
        "usable": not faults,
    }


def _some(lines: list[str]) -> list[str]:
    return lines if len(lines) <= NAMED else [*lines[:NAMED], f"... and {len(lines) - NAMED} more of this kind"]


def _look_at_folder(path: Path, found: _Findings) -> None:
    """Read every file of an image folder."""
    places = given_folders(path) or {"train": path}
    known: tuple[str, ...] | None = None
    for split, place in places.items():
        try:
            files, _, classes = class_files(place, known)
        except DataError as error:
            found.faults["classes"].append(str(error))
            continue
        known = known or classes
        images = set(files)
        for other in sorted(p for p in place.rglob("*") if p.is_file() and p not in images):
            found.faults["strange"].append(f"{other}: no image by its name; move it out or rename it")
        for file in files:
            pixels, mode, fault = _pixels(file)
            if fault is not None:
                found.faults["corrupt"].append(f"{file}: {fault}")
                found.counts[split][file.parent.name] += 0
            else:
                found.add(split, file.parent.name, str(file), pixels, mode)


def _pixels(file: Path) -> tuple[np.ndarray, str, str | None]:
    """Return an image's pixels and mode, or what is wrong with it."""
    from PIL import Image

    nothing = np.zeros((0, 0), np.uint8)
    try:
        with Image.open(file) as image:
            mode = image.mode
            image.load()
            if mode.startswith(("I", "F")):
                return nothing, mode, f"more than 8 bits a channel (mode {mode}); convert it to 8 bits"
            return np.asarray(image.convert("RGB")), mode, None
    except Exception as error:  # Pillow has no common base for what a broken file raises
        return nothing, "", f"damaged image ({error})"


def _look_at_arrays(source: str, found: _Findings) -> None:
    """Look at every image of a source that is loaded whole."""
    try:
        examples = load(DataConfig(source=source))
    except DataError:
        raise
    except BayesarchError as error:
        raise DataError(str(error)) from None
    for split, (images, labels) in {"train": (examples.images, examples.labels), **examples.given}.items():
        mode = f"{images.shape[3]} channels {images.dtype}"
        for number, label in enumerate(labels):
            found.add(split, examples.classes[label], f"{split} image {number}", images[number], mode)


def _duplicates(found: _Findings) -> None:
    """Name equal images in two splits, or of two classes; count those of one class and split."""
    for places in found.seen.values():
        splits, labels = {split for split, _, _ in places}, {label for _, label, _ in places}
        names = " and ".join(name for _, _, name in places[:3])
        if len(splits) > 1:
            found.faults["leak"].append(f"the same image in {' and '.join(sorted(splits))}: {names}")
        elif len(labels) > 1:
            found.faults["labels"].append(f"the same image in classes {' and '.join(sorted(labels))}: {names}")
    again = sum(len(p) - 1 for p in found.seen.values() if len({(split, label) for split, label, _ in p}) == 1)
    if again:
        found.faults["again"].append(f"{again} images occur more than once in their class; the splits may share them")


def _suggested(found: _Findings, ratio: float, source: str) -> dict[str, Any]:
    """Return settings to start from, dotted names."""
    settings: dict[str, Any] = {"data.source": source}
    n = sum(found.counts["train"].values())
    sides = [min(map(int, size.split("x"))) for size, count in found.sizes.items() for _ in range(min(count, 1000))]
    side = int(np.median(sides)) if sides else 0
    if len(found.sizes) > 1:
        side = min((32, 64, 96, 128, 224), key=lambda s: abs(s - side))
        settings["data.image_size"] = side
    if side >= 96:
        settings["space.stem_reductions"] = 3 if side >= 192 else 2
        settings["data.flip"] = True
    if ratio >= UNBALANCED:
        settings |= {"data.class_weights": "balanced", "data.metric": "balanced_accuracy"}
    if n and n * 0.4 < 64 * 2:
        settings["engine.batch_size"] = max(4, int(n * 0.4 / 4))
    return settings
