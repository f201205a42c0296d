"""Networks of one architecture as one network: convolutions become grouped, linear layers batched, norms wider.

Activations lie side by side along the channels, network by network, so M images of C channels go in as (B, M C, H, W)
and M times K logits come out as (B, M K). The parameters and buffers of the stack are the networks' own memory: after
`stack` each network's tensors are slices of the stack's, and whatever changes the one changes the other.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bayesarch.errors import SpaceError
from bayesarch.nets.tracing import CHANNELWISE, CHANNELWISE_FUNCTIONS, graph_of

__all__ = ["Stack", "stack"]

RANDOM = (nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d)
"""Channelwise, but they draw: a stack would draw from one stream what its networks draw from several."""


class Stack(nn.Module):
    """Networks side by side.

    Args:
        body: the joint network, (B, M C, H, W) -> (B, M K).
        pairs: (whole tensor's owner, its name, the networks' tensors of that name) of every parameter.
        of: M.
    """

    def __init__(self, body: fx.GraphModule, pairs: Sequence[tuple[nn.Parameter, list[nn.Parameter]]], of: int) -> None:
        super().__init__()
        self.body, self.of = body, of
        self._pairs = list(pairs)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (M, B, K).

        Args:
            images: what each network sees, shape (M, B, C, H, W).
        """
        m, b = images.shape[:2]
        joined = images.transpose(0, 1).reshape(b, m * images.shape[2], *images.shape[3:])
        logits: Tensor = self.body(joined.contiguous(memory_format=torch.channels_last))
        return logits.view(b, m, -1).transpose(0, 1)

    def hand_out_gradients(self) -> None:
        """Give every network its slice of the gradients, and forget them here."""
        for whole, parts in self._pairs:
            grads = [None] * self.of if whole.grad is None else whole.grad.chunk(self.of)
            for part, grad in zip(parts, grads, strict=True):
                part.grad = grad
            whole.grad = None


class _Linear(nn.Module):
    """M linear layers on features that lie side by side."""

    def __init__(self, like: nn.Linear, of: int) -> None:
        super().__init__()
        self.of, self.inputs, self.outputs = of, like.in_features, like.out_features
        self.weight = nn.Parameter(like.weight.detach().repeat(of, 1))
        self.bias = None if like.bias is None else nn.Parameter(like.bias.detach().repeat(of))

    def forward(self, x: Tensor) -> Tensor:
        """Return features, shape (B, M outputs), of features (B, M inputs)."""
        each = x.view(len(x), self.of, self.inputs).transpose(0, 1)
        out = torch.bmm(each, self.weight.view(self.of, self.outputs, self.inputs).transpose(1, 2))
        joined = out.transpose(0, 1).reshape(len(x), -1)
        return joined if self.bias is None else joined + self.bias


def _conv(like: nn.Conv2d, of: int) -> nn.Module:
    return nn.Conv2d(
        of * like.in_channels, of * like.out_channels, like.kernel_size, like.stride, like.padding,  # type: ignore[arg-type]
        like.dilation, of * like.groups, like.bias is not None, like.padding_mode,  # type: ignore[arg-type]
    )  # fmt: skip


def _norm(like: Any, of: int) -> nn.Module:
    kind: Callable[..., nn.Module] = type(like)
    return kind(
        of * like.num_features, like.eps, like.momentum, affine=like.affine,
        track_running_stats=like.track_running_stats,
    )  # fmt: skip


WIDER: dict[type[nn.Module], Callable[[Any, int], nn.Module]] = {
    nn.Conv2d: _conv, nn.BatchNorm1d: _norm, nn.BatchNorm2d: _norm, nn.Linear: _Linear,
}  # fmt: skip
"""How a layer with weights becomes that of a stack; its tensors are the networks' ones end to end."""
ALL = slice(None)
SAME_FUNCTIONS = {*CHANNELWISE_FUNCTIONS, operator.add, torch.add, operator.iadd, torch.zeros_like, F.pad}


def stack(nets: Sequence[nn.Module]) -> Stack:
    """Return networks of one architecture as one, sharing memory with them.

    Args:
        nets: M >= 1 networks that differ in their weights alone.

    Raises:
        SpaceError: if they differ in more, or hold something that cannot be stacked; names it.
    """
    first, of = nets[0], len(nets)
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in nets]
    if any(other != shapes[0] for other in shapes[1:]):
        raise SpaceError("only networks of one architecture can be stacked; these have tensors of different shapes")
    graph = graph_of(first)
    if graph is None:
        raise SpaceError(f"the code of {type(first).__name__} cannot be traced, so it cannot be stacked")
    modules: dict[str, nn.Module] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            modules[str(node.target)] = _widened(str(node.target), first.get_submodule(str(node.target)), of)
        else:
            _adapt(node, of)
    body = fx.GraphModule(modules, graph)
    like = next(first.parameters())
    body.to(like.device, like.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pairs = [pair for name in modules for pair in _tie(body.get_submodule(name), [n.get_submodule(name) for n in nets])]
    return Stack(body, pairs, of)


def _widened(name: str, module: nn.Module, of: int) -> nn.Module:
    if type(module) in WIDER:
        return WIDER[type(module)](module, of)
    flat = isinstance(module, nn.Flatten) and module.start_dim == 1
    if isinstance(module, RANDOM[:2]) or not (isinstance(module, CHANNELWISE) or flat):
        raise SpaceError(f"{name}, a {type(module).__name__}, cannot be stacked")
    return copy.deepcopy(module)


def _adapt(node: fx.Node, of: int) -> None:
    """Make a call in the graph mean the same of every network in a stack.

    Raises:
        SpaceError: if it has no such meaning that is known here.
    """
    if node.op in ("placeholder", "output"):
        return
    if node.op == "call_function":
        if node.target is torch.cat and (node.kwargs.get("dim", (*node.args, 0)[1]) == 1):
            parts = node.args[0]
            node.target, node.args, node.kwargs = _concatenate, (parts, of), {}
            return
        if node.target is operator.getitem and _is_window(node.args[1]):
            node.target, node.args = _window, (*node.args, of)
            return
        if node.target in SAME_FUNCTIONS and node.target not in RANDOM:
            return
        if node.target is torch.flatten and (*node.args, 0)[1] == 1:
            return
    if node.op == "call_method" and node.target in ("flatten", "mean") and (*node.args, 0)[1] in (1, (2, 3), [2, 3]):
        return
    raise SpaceError(f"{node.target} in the network's code cannot be stacked")


def _is_window(index: Any) -> bool:
    """Return whether an index takes all examples, and a range along every other axis."""
    return isinstance(index, tuple) and len(index) > 1 and all(isinstance(p, slice) for p in index) and index[0] == ALL


def _window(x: Tensor, index: tuple[slice, ...], of: int) -> Tensor:
    """Return what an index leaves of every network's features."""
    channels, rest = index[1], index[2:]
    if range(x.shape[1] // of)[channels] != range(x.shape[1] // of):
        x = x.unflatten(1, (of, -1))[:, :, channels].flatten(1, 2)
    return x[(ALL, ALL, *rest)] if rest else x


def _concatenate(parts: Sequence[Tensor], of: int) -> Tensor:
    """Return features of every network joined along its own channels."""
    each = [part.reshape(len(part), of, -1, *part.shape[2:]) for part in parts]
    return torch.cat(each, 2).flatten(1, 2)


def _tie(whole: nn.Module, parts: Sequence[nn.Module]) -> list[tuple[nn.Parameter, list[nn.Parameter]]]:
    """Fill a layer with the tensors of the networks' ones and make theirs slices of it; return the parameters."""
    pairs: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            own = [part.get_parameter(name) for part in parts]
            parameter.copy_(torch.cat([p.detach() for p in own]))
            parameter.requires_grad_(own[0].requires_grad)
            for p, piece in zip(own, parameter.data.chunk(len(own)), strict=True):
                p.data = piece
            pairs.append((parameter, own))
        for name, buffer in whole.named_buffers():
            theirs = [part.get_buffer(name) for part in parts]
            pieces = [buffer] * len(parts) if buffer.ndim == 0 else list(buffer.chunk(len(parts)))
            buffer.copy_(theirs[0] if buffer.ndim == 0 else torch.cat(theirs))
            for part, piece in zip(parts, pieces, strict=True):
                part._buffers[name] = piece
    return pairs
