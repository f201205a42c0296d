"""Labelled images in memory, checked at the door. numpy only.

Images are kept as (n, height, width, channels), uint8 where they came as uint8 and float32 otherwise; those of folders
too large for memory stay on disk (`files.py`) and only look like that.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from bayesarch.errors import DataError

__all__ = ["Examples", "Layout", "as_examples"]

Layout = Literal["auto", "hw", "hwc", "chw", "cl"]
"""Order of an image's axes: `hw` grey without a channel axis, `hwc`, `chw`; of a series, `cl`, channels and length;
`auto` guesses from the shape, and takes three axes for `hw`."""


@dataclass(frozen=True)
class Examples:
    """Labelled images, and a test set where the source gave one.

    Attributes:
        images: shape (n, H, W, C), uint8 or float32.
        labels: shape (n,), int64 in 0..K-1, every class present.
        classes: names of the K classes.
        given: splits that the source gave, `test` or `selection` -> images and labels like the above.
    """

    images: Any
    labels: np.ndarray
    classes: tuple[str, ...]
    given: Mapping[str, tuple[Any, np.ndarray]] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, h, w, c = self.images.shape
        return c, h, w

    def digest(self) -> str:
        """Return 16 hexadecimal digits of the content; equal data, equal digest."""
        content = hashlib.sha256()
        for array in (self.images, self.labels, *(part for name in sorted(self.given) for part in self.given[name])):
            content.update(f"{array.dtype}{array.shape}".encode())
            content.update(np.ascontiguousarray(array).data if isinstance(array, np.ndarray) else array.digest())
        return content.hexdigest()[:16]


def as_examples(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    layout: Layout = "auto",
    classes: tuple[str, ...] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    selection: tuple[np.ndarray, np.ndarray] | None = None,
    source: str = "arrays",
) -> Examples:
    """Return checked examples.

    Args:
        images: shape (n, H, W), (n, H, W, C) or (n, C, H, W); a table (n, F); integers 0..255 or finite floats.
        labels: shape (n,): integers 0..K-1 or strings.
        layout: order of an image's axes.
        classes: class names; None: the labels themselves.
        test: images and labels of a given test set.
        selection: images and labels of a given validation set; it becomes the selection split.
        source: where they came from, for messages.

    Raises:
        DataError: saying what is wrong, where, and what to do.
    """
    labels, classes = _tidy_labels(np.asarray(labels), classes, source)
    tidy = _tidy_images(np.asarray(images), layout, source)
    if len(tidy) != len(labels):
        raise DataError(f"{source}: {len(tidy)} images but {len(labels)} labels")
    given = {}
    for name, part in (("test", test), ("selection", selection)):
        if part is not None:
            given[name] = _tidy_given(part, tidy, classes, layout, f"{source} ({name})")
    return Examples(tidy, labels, classes, given)


def _tidy_given(
    part: tuple[np.ndarray, np.ndarray], like: np.ndarray, classes: tuple[str, ...], layout: Layout, source: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of a split that the source gave, checked against the training images."""
    images, labels = _tidy_images(np.asarray(part[0]), layout, source), tidy_given_labels(part[1], classes, source)
    if len(images) != len(labels):
        raise DataError(f"{source}: {len(images)} images but {len(labels)} labels")
    if images.shape[1:] != like.shape[1:] or images.dtype != like.dtype:
        raise DataError(
            f"{source}: images are {images.shape[1:]} {images.dtype}, those of training {like.shape[1:]} {like.dtype}; "
            "they must agree"
        )
    return images, labels


def _tidy_images(images: np.ndarray, layout: Layout, source: str) -> np.ndarray:
    """Return images as (n, H, W, C), uint8 or float32."""
    if images.dtype == object:
        raise DataError(f"{source}: the images differ in size; resize them to one (--set data.image_size=32)")
    if images.ndim not in (2, 3, 4) or len(images) == 0:
        raise DataError(f"{source}: images must have shape (n, H, W), (n, H, W, C) or (n, C, H, W); got {images.shape}")
    images = _channels_last(images, layout, source)
    if np.issubdtype(images.dtype, np.floating):
        if not np.isfinite(images).all():
            bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
            raise DataError(f"{source}: {len(bad)} images hold NaN or infinity, the first is number {bad[0]}")
        return np.ascontiguousarray(images, dtype=np.float32)
    if np.issubdtype(images.dtype, np.integer) or images.dtype == bool:
        low, high = int(images.min()), int(images.max())
        if low < 0 or high > 255:
            raise DataError(f"{source}: integer images must lie in 0..255; got {low}..{high} (use floats instead)")
        return np.ascontiguousarray(images, dtype=np.uint8)
    raise DataError(f"{source}: images must be integers or floats; got {images.dtype}")


def _channels_last(images: np.ndarray, layout: Layout, source: str) -> np.ndarray:
    """Return images as (n, H, W, C), whatever the order of their axes.

    Raises:
        DataError: if the order cannot be told.
    """
    if images.ndim == 2:  # a table: every column is a channel of one pixel, and scaled by itself
        return images[:, None, None, :]
    if images.ndim == 3 and layout == "cl":
        return images.transpose(0, 2, 1)[:, None]
    if images.ndim == 3:
        return images[..., None]
    first, last = images.shape[1] in (1, 3, 4), images.shape[3] in (1, 3, 4)
    if layout == "chw" or (layout == "auto" and first and not last):
        return images.transpose(0, 2, 3, 1)
    if layout == "auto" and first and last:
        raise DataError(
            f"{source}: cannot tell the channel axis of shape {images.shape}; "
            "say --set data.layout=hwc or data.layout=chw"
        )
    return images


def _tidy_labels(
    labels: np.ndarray, classes: tuple[str, ...] | None, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as int64 in 0..K-1 and the K class names."""
    if labels.ndim != 1:
        raise DataError(f"{source}: labels must have shape (n,), one class per image; got {labels.shape}")
    if labels.dtype.kind in "US":
        names, labels = np.unique(labels, return_inverse=True)
        classes = tuple(str(name) for name in names)
    elif labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iub":
        raise DataError(f"{source}: labels must be whole numbers or strings; got {labels.dtype}")
    labels = labels.astype(np.int64)
    n = len(classes) if classes else int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= n:
        raise DataError(f"{source}: labels must lie in 0..{n - 1}; got {labels.min()}..{labels.max()}")
    counts = np.bincount(labels, minlength=n)
    if n < 2:
        raise DataError(f"{source}: all examples are of one class; a classifier needs at least two")
    if (counts == 0).any():
        absent = ", ".join(str(k) for k in np.flatnonzero(counts == 0)[:5])
        raise DataError(f"{source}: labels must be 0..{n - 1} with every class present; no example of class {absent}")
    return labels, classes or tuple(str(k) for k in range(n))


def tidy_given_labels(labels: np.ndarray, classes: tuple[str, ...], source: str) -> np.ndarray:
    """Return labels of a given split in terms of the training classes; not every class need occur."""
    labels = np.asarray(labels)
    if labels.dtype.kind in "US":
        known = {name: k for k, name in enumerate(classes)}
        unknown = sorted({str(name) for name in labels} - set(known))
        if unknown:
            raise DataError(f"{source}: it has classes that training has not: {', '.join(unknown[:5])}")
        return np.array([known[str(name)] for name in labels], dtype=np.int64)
    labels = labels.astype(np.int64)
    if labels.ndim != 1 or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"{source}: labels must lie in 0..{len(classes) - 1}, one per image")
    return labels
