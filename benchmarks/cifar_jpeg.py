"""CIFAR-10 from the project's shared data, where every image is a JPEG of quality 75: called "CIFAR-10 (JPEG q75)"."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["convert", "decode"]


def decode(path: Path, indices: np.ndarray) -> np.ndarray:
    """Return images by index (the training set is 0..49,999), shape (n, 32, 32, 3), uint8."""
    with np.load(path, allow_pickle=False) as file:
        header, payload, lengths = file["header"].tobytes(), file["payload"], file["lengths"]
    ends = np.cumsum(lengths)
    bodies = (payload[ends[i] - lengths[i] : ends[i]].tobytes() for i in indices)
    return np.stack([np.asarray(Image.open(io.BytesIO(header + body)).convert("RGB")) for body in bodies])


def convert(source: Path, target: Path, *, train: int, test: int = 10_000) -> None:
    """Write an .npz that `bayesarch search --data` reads: the first images of each class, equally many, and a test set.

    Args:
        source: cifar10_jpegq75.npz.
        target: where to.
        train: training images in all, divisible by 10.
        test: test images in all, divisible by 10.
    """
    with np.load(source, allow_pickle=False) as file:
        y_train, y_test = file["y_train"], file["y_test"]

    def first(labels: np.ndarray, n: int) -> np.ndarray:
        return np.sort(np.concatenate([np.flatnonzero(labels == k)[: n // 10] for k in range(10)]))

    a, b = first(y_train, train), first(y_test, test)
    part = target.with_suffix(".part.npz")
    np.savez(
        part,
        x_train=decode(source, a),
        y_train=y_train[a].astype(np.int64),
        x_test=decode(source, b + len(y_train)),
        y_test=y_test[b].astype(np.int64),
    )
    part.replace(target)
