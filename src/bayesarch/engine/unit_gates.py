"""Gates on a network's units: what reads a unit is multiplied by its gate, by hooks on a plain module."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from bayesarch.nets import Units
from bayesarch.nets.coupling import CONVOLUTIONS, Axis

__all__ = ["UnitGates", "readers"]


def readers(net: nn.Module, units: Units) -> list[tuple[nn.Module, Axis]]:
    """Return the layers that read units, each with the axis of its weight along which it does."""
    found: list[tuple[nn.Module, Axis]] = []
    for axis in units.axes:
        layer, _, key = axis.name.rpartition(".")
        module = net.get_submodule(layer)
        if axis.dim == 1 and key == "weight" and isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            found.append((module, axis))
    return found


class UnitGates:
    """Hooks on whatever reads a unit. A gate at zero is the network without the unit.

    Args:
        net: the network; its layers get hooks, which `close` removes.
        units: its units.
    """

    def __init__(self, net: nn.Module, units: Units) -> None:
        self._gates: Tensor | None = None
        self._handles = []
        for module, axis in readers(net, units):
            groups = int(getattr(module, "groups", 1))
            read = axis.units.to(next(net.parameters()).device).repeat(groups)
            self._handles.append(module.register_forward_pre_hook(partial(self._gated, read)))

    def _gated(self, read: Tensor, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._gates is None:
            return None
        x = inputs[0]
        gates = self._gates[:, read].to(x.dtype)
        return (x * gates.view(len(gates), -1, *[1] * (x.ndim - 2)), *inputs[1:])

    @contextmanager
    def at(self, gates: Tensor) -> Iterator[None]:
        """Multiply what reads a unit by its gate, inside the block; shape (B, U)."""
        self._gates = gates
        try:
            yield
        finally:
            self._gates = None

    def close(self) -> None:
        """Take the hooks off the network."""
        for handle in self._handles:
            handle.remove()
