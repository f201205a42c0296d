"""CUDA graphs on the pretended card: what is captured does not run, and a replay runs it with the tensors of then.

As on a card: Python runs once; every tensor keeps its place; numbers of the host are frozen; a wait, a copy from the
host or a draw from a stream that was not registered breaks the capture; until the first replay there is nothing in what
was made (here: NaN). What it cannot show: kernels that may not be captured, memory pools, streams.
"""

import contextlib
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch.utils._pytree import tree_map

from pretended import HOST, Marks, Watching, leaves

SILENT = {"aten::native_batch_norm": (3, 4), "aten::cudnn_batch_norm": (3, 4)}
"""Arguments that an operation writes to without saying so."""


def tensors_in(tree) -> list[torch.Tensor]:
    return [leaf for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]


class Graph:
    """What `torch.cuda.CUDAGraph` is."""

    made: ClassVar[list["Graph"]] = []
    """Those of the running test; `pretended_graphs` empties it."""

    def __init__(self):
        self.operations, self.streams, self.replays = [], [], 0
        Graph.made.append(self)

    def register_generator_state(self, stream) -> None:
        self.streams.append(stream)

    def replay(self) -> None:
        assert self.operations, "nothing was captured"
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, outs in self.operations:
                for old, new in zip(outs, tensors_in(func(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Capture(Watching):
    """Writes operations on the card down; at the end everything is as it was before."""

    def __init__(self, graph: Graph, marks: Marks):
        super().__init__()
        self.graph, self.marks = graph, marks
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.born: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name
        given = tensors_in((args, kwargs))
        if given and all(self.marks[t] == HOST for t in given):
            return func(*args, **kwargs)
        slots = [*zip(func._schema.arguments, args, strict=False)]
        slots += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
        written = [value for a, value in slots if a.alias_info is not None and a.alias_info.is_write]
        written += [args[place] for place in SILENT.get(name, ())]
        for tensor in tensors_in(written):
            self.remember(tensor)
        frozen = tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) and self.marks[t] == HOST else t, args)
        out = func(*args, **kwargs)
        outs = tensors_in(out)
        there = {t.untyped_storage()._cdata for t in given}
        for tensor in outs:
            if tensor.untyped_storage()._cdata not in there:
                self.born[tensor.untyped_storage()._cdata] = tensor
        self.graph.operations.append((func, frozen, kwargs, outs))
        return out

    def remember(self, tensor) -> None:
        """Keep what a storage from before the capture holds."""
        key, storage = tensor.untyped_storage()._cdata, tensor.untyped_storage()
        if key not in self.before and key not in self.born:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.before[key] = whole, whole.clone()

    def put_back(self) -> None:
        with torch.no_grad():
            for whole, kept in self.before.values():
                whole.copy_(kept)
            for tensor in self.born.values():
                if tensor.is_floating_point() and self.marks[tensor] != HOST:
                    tensor.fill_(float("nan"))


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other) -> None:
        pass


@contextlib.contextmanager
def pretended_graphs(monkeypatch, marks: Marks) -> Iterator[type[Graph]]:
    """Run a block on a pretended card that can capture; gives the class whose `made` are all captures."""

    @contextlib.contextmanager
    def capturing(graph, stream=None):
        positions = [s.get_state() for s in graph.streams]
        capture, marks.capturing = Capture(graph, marks), graph
        try:
            with capture:
                yield
        finally:
            marks.capturing = None
            capture.put_back()
            for stream, position in zip(graph.streams, positions, strict=True):
                stream.set_state(position)

    Graph.made.clear()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    yield Graph
    Graph.made.clear()
