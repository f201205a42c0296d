"""Where examples come from: built-in sets by name, npz files, image folders.

To add a built-in set: write a function (config) -> Examples and add a line to `DATASETS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from bayesarch.config import Config
from bayesarch.data.examples import Examples, Layout, as_examples
from bayesarch.errors import DataError, nearest

__all__ = ["DATASETS", "DataConfig", "load"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class DataConfig(Config):
    """Where examples come from, how they are split and augmented."""

    source: str = "digits"
    """A built-in set (`digits`, `planted`), an .npz file, or a folder with one sub-folder per class."""
    called: str | None = None
    """What the data are, such as cifar10, for tables of benchmarks; null: the source's name."""
    limit: int | None = Field(default=None, ge=20)
    """Use only so many training examples, drawn by class; None: all."""
    layout: Layout = "auto"
    """Axes of array images: hw, hwc, chw; auto guesses from the shape."""
    image_size: int | None = Field(default=None, ge=4)
    """Resize the images of a folder to squares of this side; None: they must agree."""
    fractions: tuple[float, float, float, float] = (0.4, 0.4, 0.1, 0.1)
    """Shares of weights, architecture, selection and test; where the source gives a test set the first three are
    scaled up to 1."""
    split_seed: int = 0
    """Decides the splits; apart from the run's seed, so that runs of different seeds are compared on the same test."""
    crop: int | None = Field(default=None, ge=0)
    """Padding of the random crop in pixels; None: an eighth of the side, as 4 for 32."""
    flip: bool = False
    """Flip left and right at random; right for photographs, wrong for digits."""
    cutout: int = Field(default=0, ge=0)
    """Side of the random square that is blanked; 0: none."""
    class_weights: Literal["none", "balanced"] = "none"
    """How much an example counts in every loss: all the same, or in inverse proportion to the size of its class."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1"] = "accuracy"
    """What the result is reported by; for unbalanced classes a mean over classes: of recall, or of F1."""
    bootstrap: int | None = Field(default=None, ge=0)
    """Seed of a bootstrap: the weights and the architecture split are each drawn anew from themselves, with
    replacement, class by class; null: as they are. `search --repeats` sets it."""
    normalise: bool = True
    """Subtract the mean and divide by the standard deviation of each channel (of the weights split)."""

    @field_validator("fractions")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(share <= 0 for share in value) or abs(sum(value) - 1) > 1e-6:
            raise ValueError("four positive shares that sum to 1 (weights, architecture, selection, test)")
        return value


def digits(config: DataConfig) -> Examples:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8, grey (no network needed)."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    return as_examples(images, bunch.target, source="digits")


def planted(config: DataConfig) -> Examples:
    """Return the planted problem of the `toy` space: 16 features of +1 and -1, two classes, 4,000 examples.

    With x_i' = x_{i+1} (indices modulo 16), the label is the sign of sum_i w_i (x_i + x_i x_{i+2}) for fixed weights
    w of +1 and -1: exactly the cell `|product~0|+|skip~0|product~1|`, whose class of equivalence has one member. The
    two parts are uncorrelated; every other class of cells is right in less than .8 of all cases (a test says how much).
    """
    rng = np.random.default_rng(20190513)
    features = rng.choice([-1.0, 1.0], size=(4000, 16)).astype(np.float32)
    weights = rng.choice([-1.0, 1.0], size=16)
    second = features * np.roll(features, -2, axis=1)
    labels = ((features + second) @ weights > 0).astype(np.int64)
    return as_examples(features[:, None, None, :], labels, layout="chw", source="planted")


DATASETS: dict[str, Callable[[DataConfig], Examples]] = {"digits": digits, "planted": planted}
"""Every built-in set by name."""


def load(config: DataConfig) -> Examples:
    """Return the examples that `config.source` names.

    Raises:
        DataError: if there is no such set, file or folder, or if its content cannot be used.
    """
    if config.source in DATASETS:
        return DATASETS[config.source](config)
    path = Path(config.source)
    if path.is_dir():
        return image_folder(path, config)
    if path.suffix == ".npz" and path.is_file():
        return npz(path, config)
    if path.exists():
        raise DataError(f"{path}: cannot read {path.suffix or 'such'} files; give an .npz file or a folder of images")
    raise DataError(f"no data set, file or folder {config.source!r}: built-in sets {nearest(config.source, DATASETS)}")


def npz(path: Path, config: DataConfig) -> Examples:
    """Return the examples of an .npz file: `x_train`/`y_train` (or `x`/`y`), and `x_test`/`y_test` where present."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{path}: not a readable .npz of plain arrays ({error})") from None
    except Exception as error:  # zipfile and zlib raise errors of their own
        raise DataError(f"{path}: damaged .npz file ({error})") from None
    images = _first(arrays, ("x_train", "x", "X", "images"))
    labels = _first(arrays, ("y_train", "y", "labels", "targets"))
    if images is None or labels is None:
        missing = "images (x_train or x)" if images is None else "labels (y_train or y)"
        raise DataError(f"{path}: no {missing}; the file holds {', '.join(sorted(arrays)) or 'nothing'}")
    names = arrays.get("classes")
    classes = tuple(str(name) for name in names) if names is not None else None
    test_images, test_labels = _first(arrays, ("x_test", "X_test")), _first(arrays, ("y_test",))
    if (test_images is None) != (test_labels is None):
        raise DataError(f"{path}: x_test and y_test belong together; only one is there")
    test = (test_images, test_labels) if test_images is not None and test_labels is not None else None
    return as_examples(images, labels, layout=config.layout, classes=classes, test=test, source=str(path))


def _first(arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays), None)


def image_folder(path: Path, config: DataConfig) -> Examples:
    """Return the images of `path/<class>/*`, or of `path/train/<class>/*` and `path/test/<class>/*`."""
    if (path / "train").is_dir() and (path / "test").is_dir():
        images, labels, classes = _read_classes(path / "train", config.image_size, None)
        test_images, test_labels, _ = _read_classes(path / "test", config.image_size, classes)
        test = (test_images, test_labels)
        return as_examples(images, labels, layout="hwc", classes=classes, test=test, source=str(path))
    images, labels, classes = _read_classes(path, config.image_size, None)
    return as_examples(images, labels, layout="hwc", classes=classes, source=str(path))


def _read_classes(
    path: Path, size: int | None, known: tuple[str, ...] | None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return images, labels and class names of a folder with one sub-folder per class."""
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
    modes = _modes([file for file, _ in files])
    arrays = [_read(file, "L" if modes <= {"1", "L"} else "RGB", size) for file, _ in files]
    sizes: dict[tuple[int, ...], Path] = {}
    for array, (file, _) in zip(arrays, files, strict=True):
        sizes.setdefault(array.shape[:2], file)
    if len(sizes) > 1:
        (a, b), *_ = zip(list(sizes.items())[:1], list(sizes.items())[1:2], strict=True)
        raise DataError(
            f"{path}: images of {len(sizes)} sizes, such as {a[0][1]}x{a[0][0]} ({a[1].name}) and "
            f"{b[0][1]}x{b[0][0]} ({b[1].name}); say --set data.image_size=32 to resize them"
        )
    return np.stack(arrays), np.array([label for _, label in files]), classes


def _modes(files: list[Path]) -> set[str]:
    """Return the colour modes that occur."""
    from PIL import Image

    modes = set()
    for file in files:
        try:
            with Image.open(file) as image:
                modes.add(image.mode)
        except Exception as error:  # Pillow has no common base for what a broken file raises
            raise DataError(f"{file}: cannot be read as an image ({error}); remove or replace it") from None
    return modes


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
