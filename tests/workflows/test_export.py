"""Exports: the same probabilities elsewhere, with onnxruntime alone or torch alone, and nothing half-written."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import bayesarch as ba
from bayesarch.ensembles import Mixture
from bayesarch.errors import ConfigError, RunError
from bayesarch.functional import uncertainty as un
from bayesarch.nets import build
from bayesarch.nets.source import source_of
from bayesarch.spaces import SPACES, Architecture
from bayesarch.workflows import export as workflow
from bayesarch.workflows.answer import OUTPUTS, Answer
from bayesarch.workflows.predictor import Predictor

SIZES = {
    "nb201": {"channels": 4, "cells": 1},
    "darts": {"channels": 4, "layers": 3},
    "bayesnas-cell": {"channels": 4, "layers": 3},
    "tree-cell": {"channels": 4, "alpha": 6},
    "shake-shake": {"width": 4, "blocks": 1},
    "densenet121": {"growth": 4, "blocks": (2, 2), "small_images": True},
}


def predictor(space="nb201", *, members=2, shape=(3, 16, 16), seed=0) -> Predictor:
    """Return untrained networks with statistics that are not the initial ones."""
    rng, nets, archs = random.Random(seed), [], []
    made = SPACES[space]
    if made.open:
        from bayesarch.nets import close_space

        made = close_space(made, made.sizes(**SIZES[space]), shape, 4)
    for i in range(members):
        arch = Architecture(made, made.random_picks(rng))
        net = build(arch, input_shape=shape, classes=4, sizes=SIZES[space], generator=torch.Generator().manual_seed(i))
        with torch.no_grad():
            for _ in range(3):
                net(torch.randn(8, *shape, generator=torch.Generator().manual_seed(5)))
        nets.append(net.eval())
        archs.append(arch)
    weights = tuple(np.arange(1, members + 1) / np.arange(1, members + 1).sum())
    mixture = Mixture(weights, tuple(0.7 + 0.4 * i for i in range(members)), 1.3)
    return Predictor(
        nets, mixture, np.array([100.0, 90.0, 80.0])[: shape[0]], np.array([50.0, 60.0, 70.0])[: shape[0]],
        ("a", "b", "c", "d"), shape, tuple(archs),
    )  # fmt: skip


def images(shape=(3, 16, 16), n=6):
    return np.random.default_rng(0).integers(0, 256, (n, *shape[1:], shape[0])).astype(np.uint8)


def test_one_module_gives_what_the_formulas_say():
    made, x = predictor(members=3), images()
    answer = Answer(made).eval()
    with torch.no_grad():
        out = dict(zip(OUTPUTS, answer(torch.tensor(x.transpose(0, 3, 1, 2)).float()), strict=True))
    logits = made.logits(x)
    members = made.mixture.members(logits)
    assert np.allclose(out["probabilities"], made.predict_proba(x), atol=1e-5)
    assert np.allclose(out["members"], members, atol=1e-5)
    total, aleatoric, epistemic = un.split_uncertainty(members, made.mixture.weights)
    assert np.allclose(out["aleatoric"], aleatoric, atol=1e-5)
    assert np.allclose(out["epistemic"], epistemic, atol=1e-5)
    assert np.allclose(out["entropy"], un.entropy(made.predict_proba(x)), atol=1e-5)
    assert out["disagreement"].mean() == pytest.approx(un.disagreement(members), abs=1e-6)
    del total


@pytest.mark.parametrize(
    "space", [pytest.param(s, marks=pytest.mark.long) if s in {"darts", "bayesnas-cell"} else s for s in SIZES]
)
def test_source_and_program_of_every_kind_of_network(space, tmp_path):
    made, x = predictor(space, members=2 if space == "nb201" else 1), images()  # two are twice the work, once is enough
    for name in ("source", "program"):
        form = workflow.FORMATS[name]
        row = workflow._write(form, name, tmp_path / f"model{form.suffix}", made, x)
        assert row["difference"] < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"model.py", "model.safetensors", "model.pt2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "space", ["nb201", *(pytest.param(s, marks=pytest.mark.long) for s in ("shake-shake", "darts"))]
)
def test_onnx_with_onnxruntime_alone(space, tmp_path):
    made, x = predictor(space), images()
    workflow._write(workflow.FORMATS["onnx"], "onnx", tmp_path / "model.onnx", made, x)
    np.savez(tmp_path / "x.npz", x=x.transpose(0, 3, 1, 2).astype(np.float32))
    code = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
x = np.load("x.npz")["x"]
for n in (1, 3, len(x)):
    out = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"images": x[:n]})))
np.savez("out.npz", **out)
about = session.get_modelmeta().custom_metadata_map
assert json.loads(about["classes"]) == ["a", "b", "c", "d"], about
assert f"{json.loads(about['mean'])[0]:.3g} " in about["input"], about
assert not {"torch", "bayesarch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with np.load(tmp_path / "out.npz") as out:
        assert set(out) == set(OUTPUTS)
        assert np.abs(out["probabilities"] - made.predict_proba(x)).max() < 1e-5
        assert out["members"].shape == (2, 6, 4)


def test_python_text_with_torch_alone(tmp_path):
    made, x = predictor("nb201"), images()
    workflow._write(workflow.FORMATS["source"], "source", tmp_path / "model.py", made, x)
    np.save(tmp_path / "x.npy", x.transpose(0, 3, 1, 2).astype(np.float32))
    code = """
import sys
for name in ("bayesarch", "safetensors", "sklearn", "pydantic"):
    sys.modules[name] = None
import numpy as np
from model import CLASSES, load
model = load()
x = np.load("x.npy")
np.save("p.npy", model.predict_proba(x))
assert set(model.predict(x)) <= set(CLASSES) == {"a", "b", "c", "d"}
assert model(x)["epistemic"].shape == (6,)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert np.abs(np.load(tmp_path / "p.npy") - made.predict_proba(x)).max() < 1e-5
    text = (tmp_path / "model.py").read_text()
    assert "bayesarch." not in text.replace("bayesarch.nets", "").split('"""')[2]
    assert "torch._C" not in text


@pytest.mark.parametrize("name", workflow.FORMATS)
def test_a_file_that_differs_gets_no_name(name, tmp_path, monkeypatch):
    made = predictor(members=1)
    form = workflow.FORMATS[name]
    monkeypatch.setattr(form, "read", lambda path: lambda raw: np.full((len(raw), 4), 0.25))
    with pytest.raises(RunError, match="nothing was written"):
        workflow._write(form, name, tmp_path / f"model{form.suffix}", made, images())
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_breaks_leaves_nothing(tmp_path, monkeypatch):
    form = workflow.FORMATS["source"]

    def half(path, made):
        path.write_text("class Half")
        raise RuntimeError("the disk went away")

    monkeypatch.setattr(form, "write", half)
    with pytest.raises(RuntimeError, match="went away"):
        workflow._write(form, "source", tmp_path / "model.py", predictor(members=1), images())
    assert list(tmp_path.iterdir()) == []


def test_networks_that_cannot_be_written_out_say_so():
    class Odd(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ConfigError, match="export as onnx or program"):
        source_of(Odd(), "Member0")


def test_what_forward_takes_beside_the_images_is_as_its_defaults_are_in_the_text():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x, mask=None, *, twice: bool = True):
            h = self.a(x) if mask is None else self.a(x) * mask
            return self.b(h + h if twice else h)

    net, names = Masked(), {"nn": nn, "torch": torch}
    text, tensors = source_of(net, "Plain")
    exec(text, names)
    made = names["Plain"]()
    made.load_state_dict(tensors)
    x = torch.rand(5, 4)
    assert torch.equal(made(x), net(x))
    assert net.training


def test_a_file_that_does_not_run_is_named_and_not_kept(tmp_path, monkeypatch):
    form = workflow.FORMATS["source"]

    def answer(raw):
        raise TypeError("no such sum")

    monkeypatch.setattr(form, "read", lambda path: answer)
    with pytest.raises(RunError, match=r"source: the file does not run \(TypeError: no such sum\), so nothing was"):
        workflow._write(form, "source", tmp_path / "model.py", predictor(members=1), images())
    assert list(tmp_path.iterdir()) == []


def test_a_search_is_exported_and_remembers_it(tmp_path):
    sizes = {"space.channels": 4, "engine.epochs": 1, "engine.closing_epochs": 0}
    run = ba.search("digits", method="gdas", limit=300, set=sizes, out=tmp_path / "run")
    (row,) = ba.export(run, format="source")
    assert row["examples"] > 20
    kept = json.loads((tmp_path / "run" / "exports" / "exports.json").read_text())["files"]
    assert kept == [{**row, "file": "model.py"}]
    ba.evaluate(run.path, corruptions=[])
    (program,) = ba.export(run, format="program")
    page = (tmp_path / "run" / "evaluation.html").read_text()
    assert "model.py" in page
    assert "model.pt2" in page
    assert program["difference"] < 1e-5
    (other,) = ba.export(run, tmp_path / "elsewhere" / "net.pt2")
    assert other["file"] == str(tmp_path / "elsewhere" / "net.pt2")
    assert (tmp_path / "elsewhere" / "net.pt2").exists()
    for out, given, message in (
        ("model.tflite", None, "the ending says the form"),
        ("model.onnx", "all", "give a folder"),
        ("model.onnx", "program", "--format says program"),
        (None, "onnxx", "did you mean 'onnx'"),
    ):
        with pytest.raises(ConfigError, match=message):
            ba.export(run, out, format=given)
