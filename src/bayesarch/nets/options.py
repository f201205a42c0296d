"""The options of a cell as whole modules, computed once per source node where they have no weights.

One class serves supernets and plain networks: told gates, every live option is computed and multiplied; told none (only
a plain network does that), what is there is summed.

Told gates, a supernet does less for the same result: one ReLU per source node for all options that begin with it, one
norm and ReLU for those that begin so (while training, when a norm is that of the batch), faster gradients of
dilated depthwise convolutions (`depthwise.py`), and the gate as the scale of the norm that an option ends with.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.nets.by_kernels import adapted, by_kernels, chain_of, chained, is_bare_norm, usual
from bayesarch.nets.drop import PathDrop
from bayesarch.nets.kernels import Chain, Norm, Part, fan, fits, moments_of, norm_relu, parts_of
from bayesarch.nets.operations import operation_module
from bayesarch.nets.pieces import Piece
from bayesarch.nets.straight import Straight, kernels_of, straightened
from bayesarch.nets.thinning import convolved, sees_every_other, thinned
from bayesarch.spaces import Space

__all__ = ["Options", "in_supernet", "load_shared"]


class _Leaf(NamedTuple):
    """A module that leaves a node, its layers one by one, and (flat option, target node) of all that use it."""

    module: nn.Module
    layers: list[nn.Module]
    users: list[tuple[int, str]]


class Options(nn.Module):
    """The options of one cell as modules, by source node.

    Args:
        space: the space.
        kind: the cell type.
        channels: C of every option.
        columns: flat options to make.
        stride_of: source node -> stride of what leaves it.
        affine: whether norms have scale and shift.
        norm_free: whether a norm without parameters stands behind pooling.
        gates_first: whether gates multiply what an option takes, and not what it gives; nothing is shared then.
    """

    def __init__(
        self,
        space: Space,
        kind: str,
        channels: int,
        columns: Sequence[int],
        *,
        stride_of: Callable[[str], int],
        affine: bool,
        norm_free: bool,
        gates_first: bool = False,
    ) -> None:
        super().__init__()
        self.gates_first = gates_first
        self.drop: PathDrop | None = None
        """What switches operations off while a plain network is trained."""
        self.modules_of = nn.ModuleDict()
        self.wiring: dict[str, tuple[str, list[tuple[int, str]]]] = {}
        """Key in `modules_of` -> source node, and (flat option, target node) of all that use it."""
        self.key_of: dict[int, str] = {}
        """Flat option -> key of the module that is its own."""
        wanted = set(columns)
        for position, choice in enumerate(space.choices):
            if choice.cell != kind or choice.source is None or choice.target is None:
                continue
            for g, name in zip(space.columns(position), choice.options, strict=True):
                module = operation_module(name, channels, stride_of(choice.source), affine=affine)
                if g not in wanted or module is None:
                    continue
                shared = not any(True for _ in module.parameters()) and not _normed(module)
                key = f"{name}_{choice.source}" if shared else f"{name}_{choice.source}_{choice.target}"
                if key not in self.modules_of:
                    pools = shared and not _passes(module)
                    norm = nn.BatchNorm2d(channels, affine=False) if norm_free and pools else None
                    self.modules_of[key] = module if norm is None else nn.Sequential(module, norm)
                    self.wiring[key] = (choice.source, [])
                    if not shared:
                        self.key_of[g] = key
                self.wiring[key][1].append((g, choice.target))
        self._leaves: dict[str, list[_Leaf]] = {}
        self._tell()

    def _tell(self) -> None:
        """Note what leaves each node: a pass asks every node of every cell."""
        self._leaves = {}
        for key, (source, users) in self.wiring.items():
            module = self.modules_of[key]
            self._leaves.setdefault(source, []).append(_Leaf(module, _layers(module), users))

    def _used(self, node: str, active: frozenset[int] | None) -> list[_Leaf]:
        """Return what leaves a node, of it what `active` has."""
        leaves = self._leaves.get(node, [])
        if active is None:
            return leaves
        told = [leaf._replace(users=[user for user in leaf.users if user[0] in active]) for leaf in leaves]
        return [leaf for leaf in told if leaf.users]

    def parameters_of(self, column: int) -> list[nn.Parameter]:
        """Return the parameters of one option; empty where it has none."""
        return list(self.modules_of[self.key_of[column]].parameters()) if column in self.key_of else []

    def keep(self, live: Tensor) -> None:
        """Remove the options whose entry in `live` (G,) is False."""
        for key, (source, users) in list(self.wiring.items()):
            left = [(g, target) for g, target in users if live[g]]
            self.wiring[key] = (source, left)
            if not left:
                del self.modules_of[key], self.wiring[key]
        self.key_of = {g: key for g, key in self.key_of.items() if key in self.wiring}
        self._tell()

    def leaving(
        self, node: str, h: Tensor, gates: Tensor | None, active: frozenset[int] | None
    ) -> Iterator[tuple[str, Piece]]:
        """Yield (target node, gated output) of every option that leaves `node`, whose features are `h`."""
        begun = _Begun(h)
        for module, layers, used in self._used(node, active):
            if self.gates_first and gates is not None:
                for g, target in used:
                    yield target, module(h * _gate(gates, g, h.ndim))
                continue
            if gates is not None and gates.shape[0] == 1 and len(used) == 1 and is_bare_norm(layers[-1]):
                ((g, target),) = used
                yield target, _scaled(begun.finished(layers[:-1]), layers[-1], gates[0, g])
                continue
            out = module(h) if gates is None else begun.finished(layers)
            if self.drop is not None and self.training and out is not h:
                out = self.drop(out)
            for g, target in used:
                yield target, out if gates is None else (out, _gate(gates, g, out.ndim))

    def parting(
        self, node: str, h: Tensor, gates: Tensor, active: frozenset[int] | None
    ) -> Iterator[tuple[str, Piece]]:
        """Yield the same as parts of sums, in training; arguments as of `leaving`, gates of shape (1, G)."""
        if self.gates_first:
            yield from self.leaving(node, h, gates, active)
            return
        together: dict[int, list[tuple[_Leaf, Chain]]] = {}
        rest: list[_Leaf] = []
        for leaf in self._used(node, active):
            begun = _shared(leaf.layers)
            chain = chain_of(leaf.layers[begun:], leaf.users[0][0]) if len(leaf.users) == 1 else None
            if chain is None:
                rest.append(leaf)
            else:
                together.setdefault(begun, []).append((leaf, chain))
        beginning = _BegunByKernels(h, [leaf.layers for leaf in rest], len(together))
        for _, layers, used in rest:
            x, moments = by_kernels(*beginning.left(layers))
            (parts,) = parts_of(x, gates, [[g for g, _ in used]], moments)
            yield from zip([target for _, target in used], parts, strict=True)
        for begun, alike in together.items():
            leaves, chains = zip(*alike, strict=True)
            parts = beginning.chained(begun, gates, leaves, chains)
            yield from zip([leaf.users[0][1] for leaf in leaves], parts, strict=True)

    def hand_over(self, other: "Options") -> None:
        """Copy weights and norm statistics of the options that both have; the other's affine norms stay as they are."""
        for key, module in other.modules_of.items():
            if key in self.modules_of:
                module.load_state_dict(self.modules_of[key].state_dict(), strict=False)


class _Begun:
    """What the options that leave one node begin with alike, computed once.

    Args:
        h: features of the node, shape (B, C, H, W).
    """

    def __init__(self, h: Tensor) -> None:
        self.h = h
        self._rectified: Tensor | None = None
        self._normalised: Tensor | None = None
        self._batch: tuple[Tensor, Tensor] | None = None
        self._seen: dict[tuple[int, int], Tensor] = {}

    def finished(self, layers: list[nn.Module]) -> Tensor:
        """Return what an option's layers give."""
        return self.through(*self.left(layers))

    def left(self, layers: list[nn.Module]) -> tuple[list[nn.Module], Tensor]:
        """Return those of an option's layers that are left to do, and what they take."""
        begun = _shared(layers)
        if begun == 2:
            assert isinstance(layers[0], nn.BatchNorm2d)
            x = self.normalised(self.of_batch(layers[0]))
            self.tell(layers[0])
            return layers[2:], x
        return layers[begun:], self.rectified() if begun else self.plain()

    def plain(self) -> Tensor:
        """Return the features."""
        return self.h

    def rectified(self) -> Tensor:
        """Return their positive part."""
        if self._rectified is None:
            self._rectified = F.relu(self.h)
        return self._rectified

    def normalised(self, norm: Norm) -> Tensor:
        """Return the positive part of normalised features, the same for all norms, of which the first is told."""
        if self._normalised is None:
            moments = (norm.mean, norm.var, None, None, True, norm.momentum, norm.eps)
            self._normalised = F.relu(F.batch_norm(self.h, *moments))
        return self._normalised

    def through(self, layers: list[nn.Module], x: Tensor) -> Tensor:
        """Return what layers give."""
        for before, layer in zip([None, *layers], layers, strict=False):
            conv = layer.first if isinstance(layer, Straight) else layer
            if isinstance(layer, Straight) and not layer.pays(x):
                x = self.through([layer.first, layer.second], x)
            elif isinstance(layer, nn.ReLU) and isinstance(before, nn.BatchNorm2d):
                x = F.relu_(x)  # nobody else reads what that norm gave
            elif sees_every_other(conv):
                x = convolved(self._thinned(x, conv), conv, kernels_of(layer))
            else:
                x = usual(layer, x)
        return x

    def _thinned(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """Return the pixels that a convolution sees; those of what options begin with alike once."""
        d = conv.dilation[0]
        if x is not self._rectified and x is not self._normalised:
            return thinned(x, d)
        if (id(x), d) not in self._seen:
            self._seen[id(x), d] = thinned(x, d)
        return self._seen[id(x), d]

    def of_batch(self, norm: nn.BatchNorm2d) -> Norm:
        """Return a norm like an option's that comes to know the moments of the batch."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if self._batch is None:
            self._batch = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)
        # at a momentum of 1 running statistics become those of the batch
        return Norm(*self._batch, 1.0, norm.eps)

    def tell(self, norm: nn.BatchNorm2d) -> None:
        """Have an option's norm, which was left out, move its own statistics."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert self._batch is not None
        with torch.no_grad():
            norm.running_mean.lerp_(self._batch[0], norm.momentum or 0.0)
            norm.running_var.lerp_(self._batch[1], norm.momentum or 0.0)
            norm.num_batches_tracked.add_(1)


class _BegunByKernels(_Begun):
    """The same by kernels of ours, which sum the gradients of all options at one go.

    Args:
        h: features of the node, shape (B, C, H, W).
        options: the layers of each option that will ask.
        bunches: how many bunches of chains will ask.
    """

    def __init__(self, h: Tensor, options: Sequence[list[nn.Module]], bunches: int) -> None:
        super().__init__(h)
        self.count = len(options)
        risen = sum(_shared(layers) == 1 for layers in options)
        self._risen, self._plain = map(iter, fan(h, risen, self.count - risen + bunches))
        self._normed: Iterator[Tensor] | None = None

    def chained(self, begun: int, gates: Tensor, leaves: Sequence[_Leaf], chains: Sequence[Chain]) -> list[Part]:
        """Return what chains bring that begin alike, with so many layers; what these give is never made."""
        norms = [first for leaf in leaves if begun == 2 and isinstance(first := leaf.layers[0], nn.BatchNorm2d)]
        norm = self.of_batch(norms[0]) if norms else None
        parts = chained(self.plain(), gates, chains, risen=begun > 0, norm=norm)
        for told in norms:
            self.tell(told)
        return parts

    def plain(self) -> Tensor:
        return next(self._plain)

    def rectified(self) -> Tensor:
        return next(self._risen)

    def normalised(self, norm: Norm) -> Tensor:
        if self._normed is None:
            x = self.plain()
            self._normed = iter(fan(norm_relu(x, moments_of(x, norm)), 0, self.count)[1])
        return next(self._normed)


def in_supernet(module: nn.Module, x: Tensor, gates: Tensor, *, fused: bool) -> Tensor:
    """Return what a module gives, by ways of computing it that are fast in training and left out of plain networks.

    Args:
        module: what brings an input to a cell's size.
        x: the input, shape (B, C, H, W).
        gates: of the cell's options, shape (B or 1, G).
        fused: whether kernels of ours may do it, where they can.
    """
    layers = _layers(module)
    out = adapted(layers, x, gates) if fused and module.training and fits(x, gates) else None
    return _Begun(x).through(layers, x) if out is None else out


def _layers(module: nn.Module) -> list[nn.Module]:
    return straightened(list(module)) if isinstance(module, nn.Sequential) else [module]


def _shared(layers: Sequence[nn.Module]) -> int:
    """Return how many layers an option begins with that are the same for all: none, a ReLU, or a norm and a ReLU."""
    first, second = (*layers, None, None)[:2]
    if isinstance(first, nn.BatchNorm2d) and isinstance(second, nn.ReLU) and first.training and not first.affine:
        return 2
    return int(isinstance(first, nn.ReLU))


def _scaled(x: Tensor, norm: nn.BatchNorm2d, gate: Tensor) -> Tensor:
    """Return what a norm without scale gives, times a gate, which costs nothing as its scale."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    # contiguous(): torch is slow with a scale of stride 0, and its backward pass reads past one
    scale = gate.expand(norm.num_features).contiguous()
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, scale, None, norm.training, norm.momentum or 0.0, norm.eps
    )


def _gate(gates: Tensor, g: int, ndim: int) -> Tensor:
    return gates[:, g].view(-1, *[1] * (ndim - 1)) if gates.shape[0] > 1 else gates[0, g]


def _normed(module: nn.Module) -> bool:
    return any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def _passes(module: nn.Module) -> bool:
    """Return whether a module gives its input back."""
    probe = torch.arange(9.0, device="cpu").view(1, 1, 3, 3)
    with torch.device("cpu"), torch.no_grad():
        out = module(probe)
    return out.shape == probe.shape and bool(torch.equal(out, probe))


def load_shared(mine: nn.Module, theirs: nn.Module) -> None:
    """Copy what both modules have; affine norms of `theirs` stay as they are."""
    theirs.load_state_dict(mine.state_dict(), strict=False)
