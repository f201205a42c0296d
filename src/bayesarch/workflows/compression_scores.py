"""What a network that was made smaller is worth on the test split, and what of each layer is left."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesarch.data import Split
from bayesarch.functional import uncertainty as un
from bayesarch.nets import Units
from bayesarch.workflows.worth import paired, score_row, told_apart

__all__ = ["Judge", "layer_table", "nonzero"]


class Judge:
    """Scores networks on one test split.

    Args:
        units: of the whole network.
        test: the split.
        seed: of bootstraps, and of the pixels that are shuffled.
    """

    def __init__(self, units: Units, test: Split, seed: int) -> None:
        self._units, self._test, self._seed = units, test, seed
        self._labels = torch.cat([batch.labels for batch in test.in_order(512)]).cpu().numpy()
        self.n = len(self._labels)

    def score(self, name: str, net: nn.Module, keep: Tensor) -> tuple[dict[str, Any], np.ndarray]:
        """Return what a network with the units in `keep` costs and is worth, and its probabilities, shape (n, K)."""
        inside, outside = (un.softmax(z) for z in self._logits(net))
        params, macs = self._units.cost(keep)
        row = score_row(name, inside, self._labels, self._seed)
        row |= {"params": params, "macs": macs, "auroc": told_apart(inside, outside, self._seed)}
        return row, inside

    def difference(self, p: np.ndarray, base: np.ndarray) -> dict[str, Any]:
        """Return by how much one network's probabilities are worth more than another's, paired by example."""
        return paired(p, base, self._labels, self._seed)

    def _logits(self, net: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        """Return logits of the test images, and of the same with their pixels shuffled, shape (n, K) each."""
        generator = torch.Generator().manual_seed(self._seed)
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        net.eval()
        with torch.no_grad():
            for batch in self._test.in_order(512):
                images = batch.images
                flat = images.flatten(2)
                order = torch.randperm(flat.shape[2], generator=generator).to(flat.device)
                for place, x in zip(found, (images, flat[:, :, order].view_as(images)), strict=True):
                    place.append(net(x).float().cpu())
        inside, outside = (torch.cat(part).double().numpy() for part in found)
        return inside, outside


def nonzero(net: nn.Module, units: Units) -> dict[str, int]:
    """Return how many weights of each layer are not zero, by parameter name.

    Args:
        net: what `cut_units` left, trained.
        units: of the whole network.
    """
    return {name: int(p.count_nonzero()) for name, p in net.named_parameters() if name in units.macs}


def layer_table(units: Units, keep: Tensor, left: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Return what each layer had and has, inputs counted as they are read.

    Args:
        units: of the whole network.
        keep: which stay, bool, shape (U,).
        left: how many weights are not zero, by parameter name, where this is to be told.
    """
    ones = torch.ones(units.count, dtype=torch.bool)
    table = []
    for name in units.macs:
        entry: dict[str, Any] = {"layer": name.rpartition(".")[0]}
        for label, mask in (("before", ones), ("after", units.standing(keep))):
            shape = list(units.shapes[name])
            for axis in (a for a in units.axes if a.name == name):
                shape[axis.dim] = int(mask[axis.units].sum())
            share = float(np.prod(shape) / np.prod(units.shapes[name]))
            entry[label] = {"shape": shape, "macs": round(units.macs[name] * share)}
        if left:
            entry["after"]["nonzero"] = left[name]
        table.append(entry)
    return table
