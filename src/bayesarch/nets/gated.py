"""Any plain network as a supernet: the input channels of its convolutions and linear layers are told their gates.

Nothing of the network is rewritten; its layers get a hook that multiplies what comes in. Names, state and code stay the
network's own, and `inherit` gives it back with its weights cut to the channels kept.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from bayesarch.config import Config
from bayesarch.errors import ConfigError
from bayesarch.functional import seeded
from bayesarch.nets.densenet import densenet
from bayesarch.nets.enas import enas_micro
from bayesarch.nets.masking import MaskCosts, MaskedNetwork
from bayesarch.nets.module import in_layout, own_module
from bayesarch.nets.resnet_multi import resnet_multi
from bayesarch.nets.shake import shake_shake
from bayesarch.nets.skeletons import Shape
from bayesarch.nets.slicing import slice_inputs
from bayesarch.nets.tracing import producers, segments_of
from bayesarch.spaces import Architecture, GateGroup, Space, channel_space

__all__ = ["NETWORKS", "GatedSupernet", "close_space", "gate_groups", "kept_by", "network_of", "supernet_from"]

NETWORKS: dict[str, Callable[[Any, Shape, int], nn.Module]] = {
    "shake-shake": shake_shake,
    "enas-micro": enas_micro,
    "densenet121": densenet,
    "resnet50-multi": resnet_multi,
    "module": own_module,
}
"""Plain networks that channel spaces gate, by the name of their skeleton: (sizes, input shape, classes) -> network."""


def network_of(space: Space, sizes: Any, input_shape: Shape, classes: int) -> nn.Module:
    """Return the whole network of a channel space, freshly initialised."""
    return NETWORKS[space.skeleton](sizes, input_shape, classes)


def gate_groups(net: nn.Module) -> tuple[GateGroup, ...]:
    """Return the groups of gates of a network, in its order: one per gated layer and source of its input."""
    groups = []
    for name, sizes in segments_of(net).items():
        names = [name] if len(sizes) == 1 else [f"{name}/{i}" for i in range(len(sizes))]
        groups += [GateGroup(*pair) for pair in zip(names, sizes, strict=True)]
    return tuple(groups)


@lru_cache(maxsize=32)
def close_space(space: Space, sizes: Config, input_shape: Shape, classes: int) -> Space:
    """Return an open space with its choices, which the network of these sizes has; nothing is allocated.

    Raises:
        ConfigError: if the space is open and has no network of its own (`supernet_from` takes a module).
    """
    if not space.open:
        return space
    if space.skeleton not in NETWORKS:
        raise ConfigError(f"space {space.name!r} belongs to a module of yours; use supernet_from(module)")
    with torch.device("meta"):
        net = network_of(space, sizes, input_shape, classes)
    return channel_space(space, gate_groups(net))


def kept_by(arch: Architecture) -> dict[str, Tensor]:
    """Return which input channels of each gated layer an architecture keeps, by layer name, bool of shape (C,)."""
    masks: dict[str, list[Tensor]] = {}
    for choice, picked in zip(arch.space.choices, arch.picks, strict=True):
        mask = torch.zeros(len(choice.options), dtype=torch.bool)
        mask[list(picked)] = True
        masks.setdefault(choice.name.partition("/")[0], []).append(mask)
    return {name: torch.cat(parts) for name, parts in masks.items()}


class GatedSupernet(nn.Module):
    """A plain network that is told its gates, `net(images, gates)`; a `Supernet` in everything the engine asks of one.

    Args:
        space: its space, not open.
        net: the network; it is taken over, hooks are added to its layers.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
        sizes: its sizes, for records.
    """

    def __init__(self, space: Space, net: nn.Module, *, input_shape: Shape, classes: int, sizes: Any = None) -> None:
        super().__init__()
        self.space, self.input_shape, self.classes, self.sizes = space, input_shape, classes, sizes
        self._bare = (copy.deepcopy(net).to("meta"),)  # in a tuple, so that it is no submodule
        self._chains, self.costs = producers(net), MaskCosts(net, input_shape)
        self.full_macs = self.costs.macs
        self.net = net
        self.live = torch.ones(space.n_options, dtype=torch.bool)
        self._open: Tensor  # the same, where the weights lie
        self.register_buffer("_open", self.live.clone(), persistent=False)
        self.occupancy: Tensor
        self.register_buffer("occupancy", torch.ones(1, space.n_options, dtype=torch.bool), persistent=False)
        self.n_copies, self.partial = 1, 1
        self.images_seen, self.macs_spent = 0, 0
        self.noise: torch.Generator | None = None
        """Stream for what the network itself draws while training (dropout, shaking); None: torch's global one."""
        self._gates: dict[str, Tensor] = {}
        self._spans: dict[str, slice] = {}
        for offset, choice in zip(space.offsets, space.choices, strict=True):
            layer, end = choice.name.partition("/")[0], offset + len(choice.options)
            start = self._spans[layer].start if layer in self._spans else offset
            self._spans[layer] = slice(start, end)
        for name in self._spans:
            net.get_submodule(name).register_forward_pre_hook(partial(self._gate, name))

    def _gate(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if name not in self._gates:
            raise ValueError("a supernet is told its gates: net(images, gates); there is no silent full network")
        x, gate = inputs[0], self._gates[name].to(inputs[0].dtype)
        if isinstance(module, nn.Linear):
            return (x * gate.view(gate.shape[0], *[1] * (x.ndim - 2), gate.shape[1]), *inputs[1:])
        return (x * gate[:, :, None, None], *inputs[1:])

    def forward(self, images: Tensor, gates: Tensor | None = None, active: frozenset[int] | None = None) -> Tensor:
        """Return logits of shape (B, K).

        Args:
            images: shape (B, C, H, W).
            gates: shape (B or 1, 1, G).
            active: not used: channels are not skipped one by one.

        Raises:
            ValueError: if gates are missing or of another shape.
        """
        if gates is None:
            raise ValueError("a supernet is told its gates: net(images, gates); there is no silent full network")
        if gates.ndim != 3 or gates.shape[0] not in (1, len(images)) or gates.shape[1:] != (1, self.space.n_options):
            raise ValueError(
                f"gates have shape (B or 1, 1, G) = ({len(images)} or 1, 1, {self.space.n_options}); "
                f"got {tuple(gates.shape)}"
            )
        self.images_seen += len(images)
        self.macs_spent += len(images) * self.full_macs
        flat = torch.where(self._open, gates[:, 0], 0.0)
        self._gates = {name: flat[:, span] for name, span in self._spans.items()}
        drawing = seeded(self.noise) if self.training and self.noise is not None else nullcontext()
        try:
            with drawing:
                logits: Tensor = self.net(images)
        finally:
            self._gates = {}
        return logits

    def channel_sqnorm(self) -> Tensor:
        """Return the squared norm of the weights behind each gate, shape (G,), differentiable in the weights."""
        parts = []
        for name in self._spans:
            weight = self.net.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            parts.append(weight.float().square().sum([d for d in range(weight.ndim) if d != 1]))
        return torch.cat(parts)

    def resize(self, partial: int, *, generator: torch.Generator) -> dict[str, Any]:
        """Refuse partial channels.

        Raises:
            ConfigError: if `partial` is not 1.
        """
        if partial != 1:
            raise ConfigError(f"space {self.space.name!r} has no partial channels; use --method pgnas")
        return {}

    def prune(self, live: Tensor) -> None:
        """Shut the gates of channels whose entry in `live` (G,) is False for good; `inherit` cuts them out.

        Raises:
            ValueError: if `live` would open a gate that was shut.
        """
        live = live.cpu()
        if bool((live & ~self.live).any()):
            raise ValueError("prune only removes")
        self.live = live.clone()
        self._open.copy_(live)

    def inherit(self, arch: Architecture) -> nn.Module:
        """Return the network cut to the channels of `arch`, with this one's weights: the output of its hard gates."""
        return slice_inputs(self._copy(), kept_by(arch), self._chains)

    def _copy(self) -> nn.Module:
        """Return the network as it is, without hooks."""
        like = next(self.net.parameters())
        bare: nn.Module = copy.deepcopy(self._bare[0]).to_empty(device=like.device)
        bare.load_state_dict(self.net.state_dict())
        return bare.to(like.dtype).train(self.training)

    def masked(self, dtype: torch.dtype | None = None) -> MaskedNetwork:
        """Return a copy with its norms folded, to score many masks with: the same output as hard gates in eval mode."""
        return MaskedNetwork(self._copy(), dtype=dtype)

    def one_hot(self, arch: Architecture) -> Tensor:
        """Return gates of shape (1, 1, G) that are 1 on the channels kept and 0 elsewhere."""
        parameter = next(self.net.parameters())
        gates = torch.zeros(1, 1, self.space.n_options, dtype=parameter.dtype, device=parameter.device)
        gates[0, 0, list(arch.columns)] = 1.0
        return gates


def gated_supernet(
    space: Space, sizes: Any, input_shape: Shape, classes: int, *, generator: torch.Generator
) -> GatedSupernet:
    """Return the supernet of a channel space, freshly initialised."""
    with seeded(generator):
        net = in_layout(network_of(space, sizes, input_shape, classes), input_shape)
    closed = close_space(space, sizes, input_shape, classes)
    return GatedSupernet(closed, net, input_shape=input_shape, classes=classes, sizes=sizes)


def supernet_from(
    module: nn.Module, *, input_shape: Shape, classes: int, name: str = "module", sizes: Any = None
) -> GatedSupernet:
    """Return a user's own network as a supernet of its channels; the module itself is copied and not touched.

    Convolutions of one group and linear layers are gated, depthwise convolutions and what has no weights are not. Where
    `torch.fx` can trace the network, layers in front of a dropped channel are cut as well.

    Args:
        module: takes images of shape (B, *input_shape), returns logits of shape (B, classes).
        input_shape: (channels, height, width).
        classes: number of classes.
        name: what to call the space.
        sizes: for records.

    Raises:
        SpaceError: if nothing in it can be gated.
    """
    net = in_layout(copy.deepcopy(module), input_shape)
    space = channel_space(Space(name=name, choices=(), skeleton=name, sizes=Config), gate_groups(net))
    return GatedSupernet(space, net, input_shape=input_shape, classes=classes, sizes=sizes)
