"""Where examples come from: built-in sets by name, and by the look of it files and folders.

To add a built-in set: write a function (config) -> Examples and add a line to `DATASETS`.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from bayesarch.config import Config
from bayesarch.data.examples import Examples, Layout, as_examples
from bayesarch.errors import DataError, nearest

__all__ = ["DATASETS", "DataConfig", "load"]


class DataConfig(Config):
    """Where examples come from, how they are split and augmented."""

    source: str = "digits"
    """A built-in set (`digits`, `planted`), an .npz or .parquet file, a folder with one sub-folder per class, a folder
    of CIFAR's binary files, or `hf:NAME` for a Hugging Face data set."""
    called: str | None = None
    """What the data are, such as cifar10, for tables of benchmarks; null: the source's name."""
    limit: int | None = Field(default=None, ge=20)
    """Use only so many training examples, drawn by class; None: all."""
    layout: Layout = "auto"
    """Axes of array images: hw, hwc, chw; of series cl (channels, length); auto guesses from the shape."""
    image_size: int | None = Field(default=None, ge=4)
    """Resize the images of a folder to squares of this side; None: they must agree."""
    loading: Literal["auto", "memory", "files"] = "auto"
    """Whether a folder's images are held in memory or read again and again by worker processes, randomly cropped and
    resized to `image_size`; auto: files where memory would take more than 2 GiB."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read files; null: one per core, at most 8; 0: none, the search reads them itself."""
    crop_area: tuple[float, float] = (0.25, 1.0)
    """Share of an image's area that a random resized crop takes (files only)."""
    image_column: str | None = None
    """Column of images in a .parquet or Hugging Face set; null: the only one of that kind."""
    label_column: str | None = None
    """Column of classes there; null: the only one of that kind, or `label`."""
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
    rows = _digits_rows()
    images = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
    return as_examples(images, rows[:, -1].astype(np.int64), source="digits")


def _digits_rows() -> np.ndarray:
    """Return the digits as scikit-learn's file has them: 64 greys of 0 to 16 and the label, shape (1797, 65)."""
    home = find_spec("sklearn")
    for folder in (home and home.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.exists():  # no import of scikit-learn, which takes a process many times as long
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    return np.column_stack([bunch.data, bunch.target])


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
    from bayesarch.data.archives import cifar_binary, holds_cifar, hugging_face, npz, parquet
    from bayesarch.data.folders import image_folder

    if config.source in DATASETS:
        return DATASETS[config.source](config)
    if config.source.startswith("hf:"):
        return hugging_face(config)
    path = Path(config.source)
    if path.is_dir():
        return cifar_binary(path, config) if holds_cifar(path) else image_folder(path, config)
    readers = {".npz": npz, ".parquet": parquet}
    if path.is_file() and path.suffix in readers:
        return readers[path.suffix](path, config)
    if path.exists():
        raise DataError(
            f"{path}: cannot read {path.suffix or 'such'} files; give an .npz or .parquet file or a folder of images"
        )
    raise DataError(
        f"no data set, file or folder {config.source!r}: built-in sets {nearest(config.source, DATASETS)}; "
        "hf:NAME for a Hugging Face data set"
    )
