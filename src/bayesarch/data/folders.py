"""Image folders: one sub-folder per class, at the top or under `train/`, with `val/` and `test/` where given."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bayesarch.data.examples import Examples, as_examples
from bayesarch.errors import DataError

if TYPE_CHECKING:
    from bayesarch.data.sources import DataConfig

__all__ = ["GIVEN", "IMAGE_SUFFIXES", "class_files", "given_folders", "image_folder"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
GIVEN = {"test": ("test",), "selection": ("val", "valid", "validation", "selection")}
"""Split -> names of the sub-folder that gives it."""
MEMORY = 2 * 2**30
"""Bytes of decoded images beyond which a folder stays on disk."""


def given_folders(path: Path) -> dict[str, Path]:
    """Return the folders of the splits that a data folder gives, `train` among them; empty where it has none."""
    if not (path / "train").is_dir():
        return {}
    found = {name: path / word for name, words in GIVEN.items() for word in words if (path / word).is_dir()}
    return {"train": path / "train", **found} if found else {}


def class_files(path: Path, known: tuple[str, ...] | None = None) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """Return the image files of a folder with one sub-folder per class, their labels, and the class names.

    Raises:
        DataError: if there are none, or classes that `known` has not.
    """
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    classes = known or tuple(folder.name for folder in folders)
    strangers = sorted({folder.name for folder in folders} - set(classes))
    if strangers:
        raise DataError(f"{path}: classes that training has not: {', '.join(strangers[:5])}")
    files = [
        (file, classes.index(folder.name))
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError(f"{path}: no images found; expected one sub-folder per class with {', '.join(IMAGE_SUFFIXES)}")
    return [file for file, _ in files], np.array([label for _, label in files], dtype=np.int64), classes


def image_folder(path: Path, config: "DataConfig") -> Examples:
    """Return the images of `path/<class>/*`, or of `path/train/<class>/*` with `val` and `test` beside it.

    Raises:
        DataError: if a file cannot be read, or sizes differ and none was asked for.
    """
    places = given_folders(path)
    files, labels, classes = class_files(places.get("train", path))
    parts: dict[str, tuple[Sequence[Path], np.ndarray]] = {"train": (files, labels)}
    for name in GIVEN:
        if name in places:
            given_files, given_labels, _ = class_files(places[name], classes)
            parts[name] = (given_files, given_labels)
    everything = [file for part, _ in parts.values() for file in part]
    modes, size = _look(everything, config.image_size)
    mode: Literal["L", "RGB"] = "L" if modes <= {"1", "L"} else "RGB"
    side = config.image_size
    large = side is not None and len(everything) * side * side * len(mode) > MEMORY
    if config.loading == "files" or (config.loading == "auto" and large):
        return _on_disk(parts, classes, mode, side or size, path)
    arrays = {
        name: (np.stack([_read(file, mode, side) for file in part]), part_labels)
        for name, (part, part_labels) in parts.items()
    }
    images, labels = arrays.pop("train")
    return as_examples(images, labels, layout="hwc", classes=classes, source=str(path), **arrays)


def _on_disk(
    parts: dict[str, tuple[Sequence[Path], np.ndarray]], classes: tuple[str, ...], mode: Any, side: int, path: Path
) -> Examples:
    """Return examples whose images are read when needed."""
    from bayesarch.data.files import ImageFiles

    counts = np.bincount(parts["train"][1], minlength=len(classes))
    if len(classes) < 2 or (counts == 0).any():
        raise DataError(
            f"{path}: at least two classes, each with images, are needed; got {dict(zip(classes, counts, strict=True))}"
        )
    made = {name: (ImageFiles([str(f) for f in part], mode, side), labels) for name, (part, labels) in parts.items()}
    images, labels = made.pop("train")
    return Examples(images, labels, classes, made)


def _look(files: Sequence[Path], side: int | None) -> tuple[set[str], int]:
    """Return the colour modes that occur, and the side of the images where they agree.

    Raises:
        DataError: if a file is no image, is of more than 8 bits a channel, or sizes differ and `side` is None.
    """
    from PIL import Image

    modes: set[str] = set()
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            with Image.open(file) as image:
                mode, size = image.mode, image.size
        except Exception as error:  # Pillow has no common base for what a broken file raises
            raise DataError(f"{file}: cannot be read as an image ({error}); remove or replace it") from None
        if mode.startswith(("I", "F")):
            raise DataError(
                f"{file}: {mode} image, more than 8 bits a channel; convert it to 8 bits, or give an .npz of floats"
            )
        modes.add(mode)
        sizes.setdefault(size, file)
    if len(sizes) > 1 and side is None:
        (a, one), (b, two) = list(sizes.items())[:2]
        raise DataError(
            f"{one.parents[1]}: images of {len(sizes)} sizes, such as {a[0]}x{a[1]} ({one.name}) and {b[0]}x{b[1]} "
            f"({two.name}); say --set data.image_size=32 to resize them"
        )
    return modes, min(next(iter(sizes)))


def _read(file: Path, mode: Literal["L", "RGB"], size: int | None) -> np.ndarray:
    """Return one image as (H, W, C) uint8."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            loaded = image.convert(mode)
            if size is not None:
                loaded = loaded.resize((size, size), Image.Resampling.BILINEAR)
            array = np.asarray(loaded, dtype=np.uint8)
    except Exception as error:  # Pillow has no common base for what a broken file raises
        raise DataError(f"{file}: damaged image ({error}); remove or replace it") from None
    return array[..., None] if array.ndim == 2 else array
