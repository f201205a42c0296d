"""engine.compile: the same search, and a clear word where it cannot be."""

import pytest
import torch

import bayesarch as ba
from bayesarch.engine import Observer
from bayesarch.engine.compiling import compile_cells
from bayesarch.errors import ConfigError, DeviceError
from bayesarch.nets import Supernet
from helpers import make_engine

SMALL = {"space": "nb201", "source": "digits", "sizes": {"channels": 4, "cells": 1}, "limit": 300, "method": "bpnas"}

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore::DeprecationWarning")


def test_a_search_with_compiled_cells_is_the_same_search(tmp_path, monkeypatch):
    programs, whole = [], Supernet.compile_regions

    def backend(graph, inputs):
        programs.append(graph)
        return graph.forward

    monkeypatch.setattr(Supernet, "compile_regions", lambda net: whole(net, backend=backend))
    means = {}
    for compiles in (False, True):
        records = []
        engine = make_engine(
            tmp_path / str(compiles),
            epochs=1,
            closing_epochs=0,
            compile=compiles,
            observer=Observer(on_round=records.append),
            **SMALL,
        ).run()
        means[compiles] = engine.method.gates(engine.state)
        assert bool(programs) == compiles
        assert len(records) == 1
    assert not torch.equal(means[False], means[False].mean().expand_as(means[False]))
    torch.testing.assert_close(means[True], means[False], rtol=1e-3, atol=1e-4)
    # three nodes, three sizes, a pass for gates and one for weights
    assert len(programs) == 18


@pytest.mark.parametrize("method", ["bpnas", "drnas", "darts", "nesbs"])
def test_weights_are_constants_in_passes_for_gates_alone(method, tmp_path):
    """A compiled backward pass computes every gradient that could be asked for."""
    engine, asked = make_engine(tmp_path, epochs=2, closing_epochs=0, **SMALL | {"method": method}), set()

    def look(net, inputs, output):
        if torch.is_grad_enabled() and net.training:
            asked.add((inputs[1].requires_grad, any(p.requires_grad for p in net.parameters())))

    engine.net.register_forward_hook(look)
    engine.run()
    assert asked == {(True, False), (False, True)}
    assert all(p.requires_grad for p in engine.net.parameters())


def test_what_cannot_be_compiled_says_so(tmp_path, monkeypatch):
    engine = make_engine(tmp_path, epochs=1, **SMALL)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match=r"needs a C\+\+ compiler, and no-such-compiler was not found"):
        compile_cells(engine.net, torch.device("cpu"))
    with pytest.raises(DeviceError, match="no-such-compiler"):
        ba.search("digits", limit=200, out=tmp_path / "run", set={"engine.compile": True})
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"supernets of operations"):
        compile_cells(torch.nn.Linear(1, 1), torch.device("cpu"))
