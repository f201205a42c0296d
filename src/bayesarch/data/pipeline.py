"""Batches on the device: the whole split as it is stored, crop, flip, cutout and scaling for a batch at a time.

Images lie as (n, H, W, C) with their crop padding, so that a crop copies rows, and the result, seen as (B, C, H, W), is
already in channels-last order.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesarch.data.augment import crop_views, cropped, cut_, flipped
from bayesarch.data.batch import Batch, scaled
from bayesarch.data.examples import Examples
from bayesarch.data.files import FileSplit, ImageFiles
from bayesarch.data.sources import DataConfig
from bayesarch.data.splits import Partition

__all__ = ["Feeder", "MemorySplit", "Split", "splits_on"]

AHEAD = 4
"""Batches of files that are read ahead of the one in use."""


class MemorySplit:
    """One named split on a device.

    Args:
        images: shape (n, H, W, C), uint8 or float32.
        labels: shape (n,).
        config: augmentation.
        mean: per channel, in the images' own units.
        std: likewise, > 0.
        device: where batches are made.
        class_weights: how much an example of each class counts in a loss, shape (K,); None: all the same.
        sample_weights: how much each example counts beside that, shape (n,); None: all the same.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        config: DataConfig,
        mean: np.ndarray,
        std: np.ndarray,
        device: torch.device,
        class_weights: np.ndarray | None = None,
        sample_weights: np.ndarray | None = None,
    ) -> None:
        self.device = device
        self._class_weights = (
            None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32, device=device)
        )
        self._sample_weights = (
            None if sample_weights is None else torch.as_tensor(sample_weights, dtype=torch.float32, device=device)
        )
        self.side = images.shape[1], images.shape[2]
        self.pad = config.crop if config.crop is not None else min(self.side) // 8
        pad = ((0, 0), (self.pad, self.pad), (self.pad, self.pad), (0, 0))
        self.images = torch.from_numpy(np.pad(images, pad)).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self.flip, self.cutout = config.flip, config.cutout
        self._views = crop_views(self.images, self.pad)
        self._scale = torch.tensor(1.0 / std, dtype=torch.float32, device=device)
        self._shift = torch.tensor(-mean / std, dtype=torch.float32, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def plain(self, index: Tensor) -> Batch:
        """Return the examples at `index` (B,) as they are, normalised."""
        return self._batch(index, cropped(self._views, index, self.pad, self.pad))

    def augmented(self, index: Tensor, *, generator: torch.Generator) -> Batch:
        """Return the examples at `index` (B,), randomly cropped, flipped and cut out.

        Args:
            index: on the split's device.
            generator: the stream to draw from, on the split's device.
        """
        device, b = index.device, len(index)
        top: Tensor | int = 0
        left: Tensor | int = 0
        if self.pad:
            top, left = torch.randint(0, 2 * self.pad + 1, (2, b, 1), generator=generator, device=device)[..., 0]
        pixels = cropped(self._views, index, top, left)
        if self.flip:
            mirror = torch.rand((b, 1), generator=generator, device=device) < 0.5
            pixels = flipped(pixels.view(b, *self.side, -1), mirror)
        batch = self._batch(index, pixels)
        if self.cutout:
            cut_(batch.images, torch.rand((2, b, 1), generator=generator, device=device), self.cutout)
        return batch

    def _batch(self, index: Tensor, pixels: Tensor) -> Batch:
        """Return the pixels of the examples at `index`, normalised, with their labels and weights."""
        labels = self.labels[index]
        weights = None if self._class_weights is None else self._class_weights[labels]
        if self._sample_weights is not None:
            own = self._sample_weights[index]
            weights = own if weights is None else weights * own
        return Batch(scaled(pixels.view(len(index), *self.side, -1), self._scale, self._shift), labels, weights)

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield all examples once, in order, without augmentation; at most `limit` batches.

        Batches are of nearly equal size, at most `batch_size`, so that none is too small for batch statistics.
        """
        parts = torch.arange(len(self), device=self.labels.device).tensor_split(-(-len(self) // batch_size))
        for index in parts[:limit]:
            yield self.plain(index)


Split = MemorySplit | FileSplit
"""A split in memory, or one whose images stay on disk."""


class Feeder:
    """Endless shuffled, augmented batches of one split; its place can be saved and put back.

    Args:
        split: what to draw from.
        batch_size: examples per batch; never more than the split has.
        order: stream that permutes, on the CPU.
        augment: stream that augments, on the split's device.
    """

    def __init__(self, split: Split, batch_size: int, *, order: torch.Generator, augment: torch.Generator) -> None:
        self.split, self.batch_size = split, min(batch_size, len(split))
        self._order, self._augment = order, augment
        self.permutation = torch.empty(0, dtype=torch.int64)
        self.position = self.passes = 0
        self._ahead: deque[tuple[int, Any]] = deque()
        """(place, reading) of batches of files that are under way."""
        self._base = 0
        if isinstance(split, FileSplit):  # reading ahead must not move a stream, so batches have seeds by their place
            self._base = int(torch.randint(2**31, (), generator=augment, device=augment.device))

    @property
    def steps_per_pass(self) -> int:
        """Full batches in the split; a rest smaller than a batch waits for the next shuffle."""
        return len(self.split) // self.batch_size

    def next(self) -> Batch:
        """Return the next batch, shuffling anew when fewer examples than a batch are left."""
        if self.position + self.batch_size > len(self.permutation):
            self.permutation = torch.randperm(len(self.split), generator=self._order)
            self.position, self.passes = 0, self.passes + 1
            self._ahead.clear()
        start, self.position = self.position, self.position + self.batch_size
        if isinstance(self.split, FileSplit):
            return self._read(self.split, start)
        index = self.permutation[start : self.position]
        return self.split.augmented(index.to(self.split.labels.device, non_blocking=True), generator=self._augment)

    def _read(self, split: FileSplit, place: int) -> Batch:
        """Return the batch at a place of the permutation, and have the next ones read."""
        while self._ahead and self._ahead[0][0] != place:
            self._ahead.popleft()
        for start in range(place, min(place + (AHEAD + 1) * self.batch_size, len(self.permutation)), self.batch_size):
            if start + self.batch_size <= len(self.permutation) and all(start != known for known, _ in self._ahead):
                seed = self._base + 1_000_003 * self.passes + start
                index = self.permutation[start : start + self.batch_size]
                self._ahead.append((start, split.start(index, generator=torch.Generator().manual_seed(seed))))
        _, work = self._ahead.popleft()
        return split.finish(self.permutation[place : place + self.batch_size], work)

    def state(self) -> dict[str, Tensor]:
        """Return the current permutation and the place in it."""
        return {
            "permutation": self.permutation.clone(),
            "position": torch.tensor(self.position),
            "passes": torch.tensor(self.passes),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to a saved place."""
        self.permutation, self.position = state["permutation"].clone(), int(state["position"])
        self.passes = int(state["passes"])
        self._ahead.clear()


def scaling_of(examples: Examples, partition: Partition, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return what is subtracted from each channel and what it is divided by, shape (C,) each, from `weights` alone."""
    reference, _ = partition.take(examples, "weights")
    channels = examples.input_shape[0]
    if isinstance(reference, ImageFiles):
        reference = reference.some(1000)
    mean, std = np.zeros(channels), np.ones(channels)
    if config.normalise:
        mean = reference.mean(axis=(0, 1, 2), dtype=np.float64)
        std = reference.std(axis=(0, 1, 2), dtype=np.float64)
        std[std == 0] = 1.0
    elif reference.dtype == np.uint8:
        std = np.full(channels, 255.0)
    return mean, std


def splits_on(
    examples: Examples,
    partition: Partition,
    names: tuple[str, ...],
    *,
    config: DataConfig,
    device: torch.device,
    sample_weights: np.ndarray | None = None,
) -> dict[str, Split]:
    """Return the named splits on a device; what is not named is not even copied there. Large folders stay on disk.

    Scaling comes from the weights split alone, so that no other split leaks into it.

    Args:
        examples: in memory, or files.
        partition: which examples belong to which split.
        names: of the splits wanted.
        config: augmentation, scaling, class weights.
        device: where batches are made.
        sample_weights: how much each of `examples.labels` counts in a loss, shape (n,); None: all the same. For
            examples in memory, and not for splits that the source gave.
    """
    mean, std = scaling_of(examples, partition, config)
    class_weights = None
    if config.class_weights == "balanced":
        counts = np.bincount(partition.take(examples, "weights")[1], minlength=len(examples.classes))
        class_weights = counts.sum() / (len(counts) * counts)
    made: dict[str, Split] = {}
    for name in names:
        images, labels = partition.take(examples, name)
        kind: Any = FileSplit if isinstance(images, ImageFiles) else MemorySplit
        own = {} if sample_weights is None else {"sample_weights": sample_weights[partition.indices[name]]}
        made[name] = kind(
            images, labels, config=config, mean=mean, std=std, device=device, class_weights=class_weights, **own
        )
    return made
