"""Image folders too large for memory: files decoded, cropped and flipped by worker processes, a few batches ahead.

What a worker does to an image is decided before it gets it (five numbers per image, drawn from a generator that is
seeded by the batch's place), so the batches are the same for any number of workers, and a search resumes to the bit.
"""

import atexit
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from bayesarch.data.batch import Batch, scaled
from bayesarch.errors import DataError

if TYPE_CHECKING:
    from bayesarch.data.sources import DataConfig

__all__ = ["FileSplit", "ImageFiles", "render"]

Mode = Literal["L", "RGB"]
CENTRE = 224 / 256
"""Side of the middle square that is looked at without augmentation, as a share of the shorter side."""


class ImageFiles:
    """Images on disk that look like an array of shape (n, side, side, channels), uint8, and are read when needed.

    Args:
        paths: the files.
        mode: `L` or `RGB`.
        side: height and width that they are resized to.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4
    nbytes = 0

    def __init__(self, paths: Sequence[str], mode: Mode, side: int) -> None:
        self.paths, self.mode, self.side = np.asarray(paths), mode, side

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, side, side, channels)."""
        return len(self.paths), self.side, self.side, 1 if self.mode == "L" else 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: np.ndarray) -> "ImageFiles":
        return ImageFiles(self.paths[index], self.mode, self.side)

    def digest(self) -> bytes:
        """Return a digest of names and sizes: the content of large folders is not read to recognise them."""
        content = hashlib.sha256(f"{self.mode}{self.side}".encode())
        for path in self.paths:
            content.update(f"{Path(path).parent.name}/{Path(path).name}:{Path(path).stat().st_size};".encode())
        return content.digest()

    def some(self, n: int) -> np.ndarray:
        """Return up to n of the images, evenly spread, without augmentation, shape (n, side, side, C)."""
        index = np.unique(np.linspace(0, len(self) - 1, num=min(n, len(self))).astype(int))
        return np.stack([render(path, self.mode, self.side, None) for path in self.paths[index]])


def render(path: str, mode: Mode, side: int, numbers: Sequence[float] | None) -> np.ndarray:
    """Return one image, shape (side, side, C), uint8.

    Args:
        path: the file.
        mode: `L` or `RGB`.
        side: height and width.
        numbers: None: the middle square. Otherwise area share, log of the aspect ratio, where (two numbers in 0..1) and
            flip (>= .5): a random resized crop as in Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.

    Raises:
        DataError: if the file is damaged.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            box = _box(image.size, numbers)
            loaded = image.convert(mode).resize((side, side), Image.Resampling.BILINEAR, box=box)
    except Exception as error:  # Pillow has no common base for what a broken file raises
        raise DataError(f"{path}: damaged image ({error}); remove or replace it") from None
    array = np.asarray(loaded, dtype=np.uint8)
    array = array[..., None] if array.ndim == 2 else array
    return array[:, ::-1] if numbers is not None and numbers[4] >= 0.5 else array


def _box(size: tuple[int, int], numbers: Sequence[float] | None) -> tuple[float, float, float, float]:
    """Return (left, upper, right, lower) of the part that is looked at."""
    width, height = size
    if numbers is None:
        part = CENTRE * min(width, height)
        return (width - part) / 2, (height - part) / 2, (width + part) / 2, (height + part) / 2
    area, ratio, x, y, _ = numbers
    w = min(math.sqrt(area * width * height * math.exp(ratio)), width)
    h = min(math.sqrt(area * width * height * math.exp(-ratio)), height)
    return x * (width - w), y * (height - h), x * (width - w) + w, y * (height - h) + h


_pools: dict[int, ProcessPoolExecutor] = {}


def _pool(workers: int) -> ProcessPoolExecutor:
    """Return the worker processes, started when first needed and shared by all splits."""
    if workers not in _pools:
        _pools[workers] = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        atexit.register(_pools[workers].shutdown, cancel_futures=True)
    return _pools[workers]


def _render_all(paths: Sequence[str], mode: Mode, side: int, numbers: np.ndarray | None) -> np.ndarray:
    rows = [None] * len(paths) if numbers is None else numbers.tolist()
    return np.stack([render(path, mode, side, row) for path, row in zip(paths, rows, strict=True)])


class FileSplit:
    """One named split whose images stay on disk; does what `Split` does.

    Args:
        files: the images.
        labels: shape (n,).
        config: augmentation and workers.
        mean: per channel, in 0..255.
        std: likewise, > 0.
        device: where batches are made.
        class_weights: how much an example of each class counts in a loss, shape (K,); None: all the same.
    """

    def __init__(
        self,
        files: ImageFiles,
        labels: np.ndarray,
        *,
        config: "DataConfig",
        mean: np.ndarray,
        std: np.ndarray,
        device: torch.device,
        class_weights: np.ndarray | None = None,
    ) -> None:
        self.files, self.device, self.config = files, device, config
        self.images = files
        self.labels = torch.from_numpy(labels).to(device)
        self.workers = min(os.cpu_count() or 1, 8) if config.workers is None else config.workers
        self._class_weights = (
            None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32, device=device)
        )
        self._scale = torch.tensor(1.0 / std, dtype=torch.float32, device=device)
        self._shift = torch.tensor(-mean / std, dtype=torch.float32, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def start(self, index: Tensor, *, generator: torch.Generator | None) -> list["Future[np.ndarray] | np.ndarray"]:
        """Have the examples at `index` (B,) read, augmented if there is a generator; `finish` gives the batch."""
        numbers = None
        if generator is not None:
            low, high = self.config.crop_area
            u = torch.rand(len(index), 5, generator=generator).numpy()
            numbers = np.column_stack(
                [
                    low + (high - low) * u[:, 0],
                    math.log(4 / 3) * (2 * u[:, 1] - 1),
                    u[:, 2:4],
                    u[:, 4] * self.config.flip,
                ]
            )
        paths, f = self.files.paths[index.cpu().numpy()], self.files
        if self.workers == 0:
            return [_render_all(list(paths), f.mode, f.side, numbers)]
        pool, parts = _pool(self.workers), np.array_split(np.arange(len(paths)), min(self.workers, len(paths)))
        return [
            pool.submit(_render_all, list(paths[p]), f.mode, f.side, None if numbers is None else numbers[p])
            for p in parts
        ]

    def finish(self, index: Tensor, work: list["Future[np.ndarray] | np.ndarray"]) -> Batch:
        """Return the batch whose reading was started.

        Raises:
            DataError: if a file is damaged.
        """
        pixels = np.concatenate([part.result() if isinstance(part, Future) else part for part in work])
        read = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            read = read.pin_memory()  # from other memory a copy waits for what the card is doing
        images = scaled(read.to(self.device, non_blocking=True), self._scale, self._shift)
        labels = self.labels[index.to(self.device, non_blocking=True)]
        weights = None if self._class_weights is None else self._class_weights[labels]
        return Batch(images, labels, weights)

    def plain(self, index: Tensor) -> Batch:
        """Return the middle squares of the examples at `index` (B,), normalised."""
        return self.finish(index, self.start(index, generator=None))

    def augmented(self, index: Tensor, *, generator: torch.Generator) -> Batch:
        """Return random resized crops of the examples at `index` (B,), flipped at random where that is set."""
        return self.finish(index, self.start(index, generator=generator))

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield all examples once, in order, without augmentation, at most `limit` batches; one is read ahead."""
        parts = torch.arange(len(self)).tensor_split(-(-len(self) // batch_size))[:limit]
        ahead = self.start(parts[0], generator=None)
        for place, index in enumerate(parts):
            work = ahead
            if place + 1 < len(parts):
                ahead = self.start(parts[place + 1], generator=None)
            yield self.finish(index, work)
