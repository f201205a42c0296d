"""Candidates of a posterior over masks: scored with the weights they inherit, beside masks that know nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesarch.data import Split
from bayesarch.engine import batch_loss, recalibrate
from bayesarch.nets import MaskCosts, kept_by
from bayesarch.posteriors import ChannelMasks
from bayesarch.spaces import Architecture, Space

__all__ = ["Scorer", "credible_sizes", "matched", "paired", "table", "within"]


def table(masks: Sequence[Architecture]) -> np.ndarray:
    """Return masks as bool of shape (n, G)."""
    table = np.zeros((len(masks), masks[0].space.n_options), dtype=bool)
    for row, arch in zip(table, masks, strict=True):
        row[list(arch.columns)] = True
    return table


def within(
    costs: MaskCosts, posterior: ChannelMasks, budgets: Mapping[str, float], n: int, *, seed: int, draws: int = 400
) -> tuple[list[Architecture], float]:
    """Return n masks that keep the budgets, and by how much all drop logits had to be raised for that.

    The least raise at which at least half of the draws keep them; what does not keep them is drawn again. Without
    budgets, or where they are generous, that is the posterior itself and 0.
    """
    if not budgets:
        return posterior.sample(n, seed=seed), 0.0

    def keeps(masks: np.ndarray) -> np.ndarray:
        params, macs = costs.of(masks)
        sizes = {"params": params, "macs": macs}
        return np.all([sizes[name] <= budget for name, budget in budgets.items()], axis=0)

    keep, u = posterior.keep, np.random.default_rng(seed).random((draws, posterior.space.n_options))

    def raised(by: float) -> ChannelMasks:
        odds = keep / np.maximum(1 - keep, 1e-12) * math.exp(-by)
        return ChannelMasks(posterior.space, (odds / (1 + odds)).tolist())

    low, high = 0.0, 0.0
    if keeps(u < posterior.marginals()).mean() < 0.5:
        high = 40.0
        for _ in range(40):
            middle = (low + high) / 2
            enough = keeps(u < raised(middle).marginals()).mean() >= 0.5
            low, high = (low, middle) if enough else (middle, high)
    source, found, turn = raised(high) if high else posterior, list[Architecture](), 0
    while len(found) < n:
        drawn = source.sample(n, seed=seed + 7919 * turn)
        found += [arch for arch, good in zip(drawn, keeps(table(drawn)), strict=True) if good]
        turn += 1
    return found[:n], high


def matched(
    space: Space, costs: MaskCosts, masks: Sequence[Architecture], *, seed: int, draws: int = 200
) -> ChannelMasks:
    """Return masks that know nothing: one rate for all channels, as many parameters in the mean as `masks` have."""
    target = float(costs.of(table(masks))[0].mean())
    u = np.random.default_rng(seed).random((draws, space.n_options))
    low, high = 0.0, 1.0
    for _ in range(30):
        keep = (low + high) / 2
        low, high = (keep, high) if costs.of(u < keep)[0].mean() < target else (low, keep)
    return ChannelMasks(space, [(low + high) / 2] * len(space.choices))


def credible_sizes(costs: MaskCosts, posterior: ChannelMasks, *, seed: int, draws: int = 1000) -> tuple[Any, ...]:
    """Return mean and central 90 % of the parameters and MACs of masks drawn from the posterior, once cut."""
    rng, keep = np.random.default_rng(seed), posterior.marginals()
    values = costs.of(rng.random((draws, len(keep))) < keep)
    return tuple(
        {
            "what": what,
            "whole": whole,
            "mean": float(drawn.mean()),
            "low": float(np.quantile(drawn, 0.05)),
            "high": float(np.quantile(drawn, 0.95)),
        }
        for what, whole, drawn in zip(("params", "macs"), (costs.params, costs.macs), values, strict=True)
    )


class Scorer:
    """Scores masks with the weights they inherit, one after another, on copies of the network with its norms folded.

    Args:
        net: the supernet; left as it is.
        data: splits `architecture` and `selection`.
        dtype: of the computation; None: the network's.
        recalibrated: a mask that the norms take their statistics anew for; None: as trained.
    """

    def __init__(
        self,
        net: Any,
        data: Mapping[str, Split],
        dtype: torch.dtype | None,
        *,
        recalibrated: Architecture | None = None,
    ) -> None:
        self.net, self.data = net, data
        trained = {name: value.clone() for name, value in net.net.state_dict().items()}
        if recalibrated is not None:
            recalibrate(net, net.one_hot(recalibrated), data["weights"], batch_size=64)
        self.masked = net.masked(dtype)
        net.net.load_state_dict(trained)
        side = net.input_shape[1] * net.input_shape[2]
        # what a core's cache holds; measured: 64 images of 28 x 28, 256 and more of 8 x 8
        self.batch_size = 512 if next(net.parameters()).is_cuda else min(max(50_000 // side, 16), 512)

    def right(self, arch: Architecture, split: str) -> tuple[Tensor, float]:
        """Return which examples a mask has right, bool of shape (n,), and its mean loss."""
        self.masked.mask(kept_by(arch))
        correct, loss, n = [], 0.0, len(self.data[split].labels)
        for batch in self.data[split].in_order(self.batch_size, None):
            logits = self.masked(batch.images)
            correct.append(logits.argmax(1) == batch.labels)
            loss += float(batch_loss(logits, batch)) * len(batch.labels)
        return torch.cat(correct), loss / n

    def row(self, name: str, masks: Sequence[Architecture], ranked: Tensor | None = None) -> dict[str, Any]:
        """Return mean, standard deviation and extremes of masks' accuracies, and their mean size.

        Args:
            name: what to call them.
            masks: scored on both splits; on the selection split at most 50 of them.
            ranked: which examples of the ranking split each has right, where that is known.
        """
        params, macs = self.net.costs.of(table(masks))
        row: dict[str, Any] = {
            "name": name,
            "masks": len(masks),
            "params": float(params.mean()),
            "macs": float(macs.mean()),
        }
        row["params_kept"] = row["params"] / self.net.costs.params
        if ranked is None:
            ranked = torch.stack([self.right(arch, "architecture")[0] for arch in masks])
        reported = torch.stack([self.right(arch, "selection")[0] for arch in masks[:50]])
        for split, right in (("architecture", ranked), ("selection", reported)):
            accuracies, n = right.double().mean(1), right.shape[1]
            mean = float(accuracies.mean())
            row[split] = {
                "mean": mean,
                "sd": float(accuracies.std()) if len(accuracies) > 1 else None,
                "max": float(accuracies.max()),
                "se": math.sqrt(mean * (1 - mean) / n),
                "n": n,
                "masks": len(accuracies),
            }
        return row


def paired(right: Tensor, best: int) -> dict[str, float]:
    """Return how the best candidate stands against the others on the examples that chose it, by paired differences."""
    others = torch.arange(len(right), device=right.device) != best
    differences = right[best].double() - right[others].double()  # (C - 1, n)
    mean = differences.mean(1)
    se = differences.std(1) / math.sqrt(right.shape[1])
    within = (mean <= 2 * se).double().mean() if len(mean) else torch.ones(())
    return {"share_within_two_paired_standard_errors": float(within)}
