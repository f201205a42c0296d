"""Splits by name: stratified, never overlapping, told by a fingerprint. numpy only.

weights        trains network weights
architecture   trains beliefs about the architecture
selection      chooses and reports during a search; neither of the two above has seen it
test           read once, after everything is decided; a search never gets it
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesarch.data.examples import Examples
from bayesarch.data.sources import DataConfig
from bayesarch.errors import DataError

__all__ = ["SEARCH_SPLITS", "SPLITS", "Partition", "split"]

SPLITS = ("weights", "architecture", "selection", "test")
SEARCH_SPLITS = SPLITS[:3]
"""What a search may see."""


@dataclass(frozen=True)
class Partition:
    """Which examples belong to which split.

    Attributes:
        indices: per split, sorted indices; those of a split that the source gave count in that.
        given: names of splits that the source gave.
    """

    indices: Mapping[str, np.ndarray]
    given: tuple[str, ...] = ()

    @property
    def given_test(self) -> bool:
        """Whether the source gave a test set."""
        return "test" in self.given

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples per split."""
        return {name: len(index) for name, index in self.indices.items()}

    def take(self, examples: Examples, name: str) -> tuple[Any, np.ndarray]:
        """Return images and labels of one split."""
        index = self.indices[name]
        if name in self.given:
            images, labels = examples.given[name]
            return images[index], labels[index]
        return examples.images[index], examples.labels[index]

    def for_training(self) -> "Partition":
        """Return the partition to train a found architecture with: `weights` holds the architecture split as well.

        Raises:
            DataError: if the source gave one of the two, so that they cannot be joined.
        """
        both = {"weights", "architecture"}
        if both & set(self.given):
            raise DataError(f"the source gave {', '.join(sorted(both & set(self.given)))}: train on `weights` alone")
        joined = np.sort(np.concatenate([self.indices["weights"], self.indices["architecture"]]))
        rest = {name: index for name, index in self.indices.items() if name not in both}
        return Partition({"weights": joined, **rest}, self.given)

    def fingerprint(self, examples: Examples) -> dict[str, str]:
        """Return digests of the content and of each split, for the run folder."""
        prints = {"content": examples.digest()}
        for name, index in self.indices.items():
            prints[name] = hashlib.sha256(index.astype("<i8").tobytes()).hexdigest()[:16]
        return prints


def split(examples: Examples, config: DataConfig) -> Partition:
    """Return the partition that `config` describes, the same for the same content and `split_seed`.

    With `bootstrap`, weights and architecture splits hold repeated examples; they still never overlap.

    Every class is cut in the same shares, by largest remainder, at least one example each.

    Raises:
        DataError: if a class has too few examples to appear in every split.
    """
    rng = np.random.default_rng(config.split_seed)
    given = tuple(sorted(examples.given))
    names = tuple(name for name in SPLITS if name not in given)
    shares = np.array([share for name, share in zip(SPLITS, config.fractions, strict=True) if name in names])
    shares = shares / shares.sum()
    pool = _limited(examples.labels, config.limit, rng)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for k, name in enumerate(examples.classes):
        members = rng.permutation(pool[examples.labels[pool] == k])
        if len(members) < len(names):
            raise DataError(
                f"class {name!r} has {len(members)} examples; at least {len(names)} are needed, one for each of "
                f"the splits {', '.join(names)}"
            )
        for part, chunk in zip(names, np.split(members, np.cumsum(_counts(len(members), shares))[:-1]), strict=True):
            parts[part].append(chunk)
    indices = {name: np.sort(np.concatenate(chunks)) for name, chunks in parts.items()}
    if config.bootstrap is not None:
        again = np.random.default_rng([config.bootstrap, 0xB007])
        for name in ("weights", "architecture"):
            indices[name] = _resampled(indices[name], examples.labels, again)
    for name in given:
        indices[name] = np.arange(len(examples.given[name][1]))
    return Partition({name: indices[name] for name in SPLITS}, given)


def _resampled(index: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return as many indices drawn from `index` with replacement, each class as large as before."""
    members = [index[labels[index] == k] for k in np.unique(labels[index])]
    return np.sort(np.concatenate([rng.choice(group, size=len(group)) for group in members]))


def _counts(n: int, shares: np.ndarray) -> np.ndarray:
    """Return how many of n members each share gets, by largest remainder, each at least 1."""
    counts = np.maximum(np.floor(n * shares).astype(int), 1)
    while counts.sum() < n:
        counts[np.argmax(n * shares - counts)] += 1
    while counts.sum() > n:
        counts[np.argmax(counts)] -= 1
    return counts


def _limited(labels: np.ndarray, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of at most `limit` examples, classes in proportion."""
    everything = np.arange(len(labels))
    if limit is None or limit >= len(labels):
        return everything
    classes, counts = np.unique(labels, return_counts=True)
    if limit < len(classes):
        raise DataError(f"limit={limit} is less than the number of classes, {len(classes)}")
    chosen = [
        rng.choice(everything[labels == k], size=size, replace=False)
        for k, size in zip(classes, _counts(limit, counts / counts.sum()), strict=True)
    ]
    return np.sort(np.concatenate(chosen))
