"""engine.compile and engine.fused: the same search, and a clear word where it cannot be."""

import pytest
import torch
from torch import nn

import bayesarch as ba
from bayesarch.engine import EngineConfig, Observer, TrainConfig
from bayesarch.engine.compiling import check_training, check_ways, take_way
from bayesarch.errors import ConfigError, DeviceError
from bayesarch.nets import Supernet
from bayesarch.nets.kernels import cell, library, rows
from bayesarch.workflows.job import prepare
from helpers import make_engine, needs_cc

SMALL = {
    "space": "nb201", "source": "digits", "sizes": {"channels": 4, "cells": 1}, "limit": 160, "batch_size": 32,
    "method": "bpnas",
}  # fmt: skip

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
    engine, asked = make_engine(tmp_path, epochs=1, **SMALL), EngineConfig(compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match=r"needs a C\+\+ compiler, and no-such-compiler was not found"):
        take_way(engine.net, asked, torch.device("cpu"))
    with pytest.raises(DeviceError, match="no-such-compiler"):
        ba.search("digits", limit=200, out=tmp_path / "run", set={"engine.compile": True})
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv("CXX")
    for way in ("compile", "fused"):
        with pytest.raises(ConfigError, match=rf"engine\.{way} is for supernets of operations"):
            take_way(torch.nn.Linear(1, 1), EngineConfig(**{way: True}), torch.device("cpu"))


def sums_by_kernels(monkeypatch):
    """One entry for each sum of a node, or whole cell, that kernels compute from now on."""
    found = []
    for function in (rows._Sum, cell._Cell):

        def counted(*words, way=function.forward):
            found.append(1)
            return way(*words)

        monkeypatch.setattr(function, "forward", staticmethod(counted))
    return found


@needs_cc
@pytest.mark.parametrize("method", ["bpnas", "gdas", "bayesnas", "darts-2nd", "pcdarts"])
def test_a_search_with_fused_sums_is_the_same_search(method, tmp_path, monkeypatch):
    """Up to rounding, while kernels compute; and twice the same to the bit."""
    settings = {"bayesnas": {"rounds": 1}, "bpnas": {"reopen_steps": 0}}.get(method, {})
    sums = sums_by_kernels(monkeypatch)
    found, records = [], []
    for number, fuses in enumerate((False, True, True)):
        engine = make_engine(
            tmp_path / str(number),
            **SMALL | {"method": method},
            epochs=1,
            closing_epochs=0,
            settings=settings,
            fused=fuses,
            observer=Observer(on_round=records.append),
        ).run()
        found.append([engine.method.gates(engine.state), *engine.net.state_dict().values()])
        assert bool(sums) == fuses
    assert all(torch.equal(a, b) for a, b in zip(found[1], found[2], strict=True))
    for a, b in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)
    losses = [record["weights_loss"] for record in records]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@needs_cc
def test_what_a_search_will_cost_is_told_from_fused_steps(monkeypatch):
    """So that the time and the memory that are printed are those of the search."""
    sums = sums_by_kernels(monkeypatch)
    for fuses in (False, True):
        sets = {"space.channels": 4, "space.cells": 1, "engine.fused": fuses}
        prepare("digits", limit=200, set=sets).trial().step(16)
        assert bool(sums) == fuses


@pytest.mark.parametrize(("precision", "types"), [("fp32", {torch.float32}), ("bf16", {torch.float32, torch.bfloat16})])
def test_kernels_are_compiled_for_the_types_of_the_search_before_it_begins(precision, types, monkeypatch):
    asked = []
    monkeypatch.setattr("bayesarch.engine.compiling.library", asked.append)
    check_ways(EngineConfig(fused=True, precision=precision), torch.device("cpu"))
    assert set(asked) == types


def test_what_cannot_be_fused_says_so(tmp_path, monkeypatch):
    for config, device, processes, said in (
        (EngineConfig(fused=True, compile=True), "cpu", 1, "two ways to compute the same"),
        (EngineConfig(fused=True), "cuda", 1, "for the CPU, and the device is cuda"),
        (EngineConfig(fused=True), "cpu", 2, "several processes"),
    ):
        with pytest.raises((ConfigError, DeviceError), match=said):
            check_ways(config, torch.device(device), processes)
    monkeypatch.setenv("CC", "no-such-compiler")
    library.cache_clear()
    with pytest.raises(DeviceError, match="need a C compiler, and no-such-compiler was not found"):
        ba.search("digits", limit=200, out=tmp_path / "run", set={"engine.fused": True})
    library.cache_clear()
    assert not (tmp_path / "run").exists()


def test_trainings_that_cannot_be_fused_say_so(tmp_path, monkeypatch):
    for config, device, said in (
        (TrainConfig(fused=True), "cuda", r"train\.fused is for the CPU, and the device is cuda"),
        (
            TrainConfig(fused=True, precision="bf16"),
            "cpu",
            r"train\.fused computes in fp32, and train\.precision is bf16",
        ),
    ):
        with pytest.raises((ConfigError, DeviceError), match=said):
            check_training(config, torch.device(device))
    run = ba.search(
        "digits",
        space="toy",
        method="random",
        limit=200,
        out=tmp_path / "run",
        set={"method.candidates": 1, "engine.epochs": 1},
    )
    monkeypatch.setenv("CC", "no-such-compiler")
    library.cache_clear()
    fused, said = {"train.fused": True}, "need a C compiler, and no-such-compiler was not found"
    with pytest.raises(DeviceError, match=said):
        ba.train(run, out=tmp_path / "trained", set=fused)
    with pytest.raises(DeviceError, match=said):
        ba.ensemble(run, members=2, candidates="deepens", out=tmp_path / "several", set=fused)
    with pytest.raises(DeviceError, match=said):
        ba.compress(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "digits", out=tmp_path / "smaller", set=fused)
    library.cache_clear()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
