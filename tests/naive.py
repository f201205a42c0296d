"""A supernet written the slow, obvious way, on the weights of ours: every option by itself, in order."""

import torch
from torch.nn import functional as F

from bayesarch.nets import OPERATIONS, Supernet
from bayesarch.nets.cells import MixedCell


def naive_forward(net: Supernet, images: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Return logits; norms use batch statistics (training mode), running statistics are not touched."""
    x = net.stem(images)
    copy = 0
    for layer in net.layers:
        if isinstance(layer, MixedCell):
            row = gates[:, copy if gates.shape[1] > 1 else 0]
            x = naive_cell(layer, x, row.expand(len(images), -1))
            copy += 1
        else:
            x = layer(x)
    return net.head(x)


def naive_cell(cell: MixedCell, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Return a cell's output; gates (B, G)."""
    space, width = cell.space, cell.width
    nodes = {node: torch.zeros_like(x) for node in cell.order}
    for node in space.inputs:
        nodes[node] = x
    for target in cell.order:
        for position, choice in enumerate(space.choices):
            if choice.target != target:
                continue
            for g, name in zip(space.columns(position), choice.options, strict=True):
                if g in cell.present:
                    source = nodes[choice.source]
                    out = torch.cat(
                        [naive_option(cell, choice.source, g, name, source[:, :width]), source[:, width:]], 1
                    )
                    nodes[target] = nodes[target] + gates[:, g].view(-1, 1, 1, 1) * out
        if width < cell.channels and target not in space.inputs:
            b, c, h, w = nodes[target].shape
            groups = nodes[target].view(b, c // width, width, h, w)  # channel shuffle as published
            nodes[target] = groups.transpose(1, 2).reshape(b, c, h, w)
    return sum(nodes[node] for node in space.outputs)


def naive_option(cell: MixedCell, source: str, g: int, name: str, h: torch.Tensor) -> torch.Tensor:
    op = OPERATIONS[name]
    if op.kernel is not None:
        weight = cell.stacks[f"{source}_{op.kernel}"].weights[str(g)]
        y = F.conv2d(torch.relu(h), weight, padding=op.kernel // 2)
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
        return (y - mean) / torch.sqrt(var + 1e-5)
    return torch.zeros_like(h) if op.free is None else op.free(h)
