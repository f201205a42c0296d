"""All convolutions of one kernel size that leave one node, computed as one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.nets.by_kernels import chained
from bayesarch.nets.dense import fused_dense
from bayesarch.nets.kernels import Bunch, Chain, Norm, Pair, Part, moments_of, parts_of

__all__ = ["ConvStack", "Growth"]

EPS = 1e-5
"""Added to variances, as in `torch.nn.BatchNorm2d`."""

Growth = tuple[Tensor, Tensor]
"""Which old output and input channel each channel of a widened convolution is a copy of, shapes (w,) and (w,)."""


class ConvStack(nn.Module):
    """All convolutions of one kernel size that leave one node: conv -> batch norm (not affine) -> gate.

    One Parameter per option, concatenated in the forward pass, so that removing an option keeps the others' identity
    and with it their optimiser state. Norm statistics are rows of one buffer.
    """

    running_mean: Tensor
    running_var: Tensor
    columns_index: Tensor

    def __init__(self, channels: int, sides: tuple[int, int], columns: Sequence[int], targets: Sequence[str]) -> None:
        super().__init__()
        self.channels, self.padding = channels, (sides[0] // 2, sides[1] // 2)
        self.columns, self.targets = list(columns), list(targets)
        self.momentum: float = 0.1
        """Weight of a new batch in the running statistics, as in `torch.nn.BatchNorm2d`."""
        self.weights = nn.ParameterDict()
        for column in self.columns:
            conv = nn.Conv2d(channels, channels, sides, bias=False)
            self.weights[str(column)] = conv.weight
        self.register_buffer("running_mean", torch.zeros(len(self.columns), channels))
        self.register_buffer("running_var", torch.ones(len(self.columns), channels))
        self.register_buffer("columns_index", torch.tensor(self.columns), persistent=False)

    def keep(self, live: Tensor) -> None:
        """Remove the options whose entry in `live` (G,) is False."""
        rows = [row for row, column in enumerate(self.columns) if live[column]]
        for row, column in enumerate(self.columns):
            if row not in rows:
                del self.weights[str(column)]
        self.running_mean = self.running_mean[rows].clone()
        self.running_var = self.running_var[rows].clone()
        self.columns_index = self.columns_index[rows].clone()
        self.columns = [self.columns[row] for row in rows]
        self.targets = [self.targets[row] for row in rows]

    def take(self, column: int, weight: Tensor, mean: Tensor, var: Tensor) -> None:
        """Copy one convolution's weight and norm statistics, if it is here."""
        if column in self.columns:
            row = self.columns.index(column)
            self.weights[str(column)].copy_(weight)
            self.running_mean[row], self.running_var[row] = mean, var

    def widen(self, channels: int, generator: torch.Generator) -> dict[str, Growth]:
        """Widen every convolution by copies of channels drawn at random, and return what was copied, per option.

        Reference: Chen, Goodfellow and Shlens, "Net2Net", ICLR 2016, as DrNAS uses it: without dividing by the number
        of copies, which the norm behind the convolution undoes.
        """
        extra = channels - self.channels
        grown: dict[str, Growth] = {}
        mean, var = [], []
        for row, column in enumerate(self.columns):
            old = self.weights[str(column)]
            outs, ins = (
                torch.cat([torch.arange(self.channels), torch.randint(self.channels, (extra,), generator=generator)])
                for _ in range(2)
            )
            grown[str(column)] = (outs.to(old.device), ins.to(old.device))
            wide = old.detach()[grown[str(column)][0]][:, grown[str(column)][1]]
            self.weights[str(column)] = nn.Parameter(wide.to(memory_format=torch.channels_last))
            mean.append(self.running_mean[row][grown[str(column)][0]])
            var.append(self.running_var[row][grown[str(column)][0]])
        self.running_mean, self.running_var = torch.stack(mean), torch.stack(var)
        self.channels = channels
        return grown

    def forward(self, h: Tensor, gates: Tensor, active: frozenset[int] | None) -> list[tuple[str, Tensor]]:
        """Return (target node, gated output) per option computed.

        Args:
            h: rectified features of the source node, shape (B, C, H, W).
            gates: shape (B or 1, G).
            active: flat options to compute; None: all that are live.
        """
        rows = self._rows(active)
        if not rows:
            return []
        partial = len(rows) < len(self.columns)
        y = F.conv2d(h, self._weight(rows), padding=self.padding)
        mean, var = self._moments(rows)
        scale = gates[:, self.columns_index[rows] if partial else self.columns_index]
        shared = gates.shape[0] == 1
        # contiguous(): for one row reshape gives a view of stride 0, past which torch's batch-norm backward reads
        folded = scale[0].unsqueeze(1).expand(-1, self.channels).reshape(-1).contiguous() if shared else None
        y = F.batch_norm(
            y, mean.view(-1), var.view(-1), folded, None, training=self.training, momentum=self.momentum, eps=EPS
        )
        if partial and self.training:
            self._moved(rows, mean, var)
        pieces = y.split(self.channels, 1) if len(rows) > 1 else (y,)
        if not shared:
            pieces = tuple(piece * scale[:, k, None, None, None] for k, piece in enumerate(pieces))
        return [(self.targets[row], piece) for row, piece in zip(rows, pieces, strict=True)]

    def parting(self, h: Tensor, gates: Tensor, active: frozenset[int] | None) -> list[tuple[str, Part]]:
        """Return the same as parts of sums, in training; arguments as of `forward`, gates of shape (1, G)."""
        rows = self._rows(active)
        if not rows:
            return []
        if self.padding == (0, 0):
            return self._points(h, gates, rows)
        y = fused_dense(h, self._weight(rows))
        mean, var = self._moments(rows)
        norm = Norm(mean.view(-1), var.view(-1), self.momentum, EPS)
        parts = parts_of(y, gates, [(self.columns[row],) for row in rows], moments_of(y, norm))
        if len(rows) < len(self.columns):
            self._moved(rows, mean, var)
        return [(self.targets[row], mine[0]) for row, mine in zip(rows, parts, strict=True)]

    def bunch(self, active: frozenset[int] | None) -> tuple[Bunch, list[str]]:
        """Return what is computed, for a function that computes more, and the nodes it goes to; then comes `told`."""
        rows = self._rows(active)
        if not rows:
            return Bunch(), []
        mean, var = self._moments(rows)
        weights = [self.weights[str(self.columns[row])] for row in rows]
        norm = Norm(mean.view(-1), var.view(-1), self.momentum, EPS)
        return Bunch(weights, [self.columns[row] for row in rows], norm), [self.targets[row] for row in rows]

    def told(self, bunch: Bunch) -> None:
        """Take the running moments that were moved with a bunch of these."""
        if bunch.norm is not None and len(bunch.columns) < len(self.columns):
            moved = [running.view(-1, self.channels) for running in bunch.norm[:2]]
            self._moved([self.columns.index(column) for column in bunch.columns], *moved)

    def _points(self, h: Tensor, gates: Tensor, rows: list[int]) -> list[tuple[str, Part]]:
        """Return parts of 1 x 1 convolutions."""
        chains = []
        for row in rows:
            column, moments = self.columns[row], (self.running_mean[row], self.running_var[row])
            pair = Pair(None, self.weights[str(column)], 1, 1, Norm(*moments, self.momentum, EPS))
            chains.append(Chain((pair,), column))
        return [(self.targets[row], part) for row, part in zip(rows, chained(h, gates, chains), strict=True)]

    def _rows(self, active: frozenset[int] | None) -> list[int]:
        return [row for row, c in enumerate(self.columns) if active is None or c in active]

    def _weight(self, rows: list[int]) -> Tensor:
        """Return kernels side by side."""
        weights = [self.weights[str(self.columns[row])] for row in rows]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _moments(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Return running moments: copies where not all are computed."""
        if len(rows) == len(self.columns):
            return self.running_mean, self.running_var
        return self.running_mean[rows], self.running_var[rows]

    def _moved(self, rows: list[int], mean: Tensor, var: Tensor) -> None:
        with torch.no_grad():
            self.running_mean[rows], self.running_var[rows] = mean, var
