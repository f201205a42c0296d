"""Ensembles of other networks than cells, and of other data than files."""

import numpy as np
import pytest

import bayesarch as ba
from bayesarch.errors import ConfigError
from helpers import split_of


def test_an_ensemble_of_channel_masks_is_trained_from_scratch(tmp_path, fog_alone, here):
    given = {"space.width": 4, "space.blocks": 1, "engine.epochs": 2, "method.candidates": 3, "method.controls": 0}
    run = ba.search("digits", method="pgnas", space="shake-shake", limit=400, set=given, out=tmp_path / "search")
    done = ba.ensemble(
        run, members=2, candidates="samples", set={"train.epochs": 2, "ensemble.reference": False}, out=tmp_path / "a"
    )
    images, _ = split_of(done, "test")
    assert done.predict_proba(images).shape == (len(images), 10)
    for member in done.members:
        assert sum(p.numel() for p in member.network().parameters()) == member.summary["params"]
    with pytest.raises(ConfigError, match="take --from samples"):
        ba.ensemble(run, candidates="bpnas", out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_ensemble_of_perceptrons_on_a_table(tmp_path, here):
    from sklearn.datasets import load_wine

    from bayesarch.data import as_examples

    x, y = load_wine(return_X_y=True)
    examples = as_examples(x.astype(np.float32), y)
    run = ba.search(examples, space="mlp", method="darts", set={"engine.epochs": 3}, out=tmp_path / "search")
    done = ba.ensemble(run, examples, members=2, candidates="samples", set={"train.epochs": 30}, out=tmp_path / "a")
    assert not (tmp_path / "a" / "reference").exists(), "a ResNet is for images"
    record = done.folder.read_json("evaluation.json")
    assert record["corruptions"] == []
    assert record["ood"]["name"] == "test rows, every column shuffled by itself"
    assert record["rows"][0]["accuracy"]["value"] > 0.7
    (row,) = ba.export(done, format="source")
    assert row["difference"] < 1e-5


def test_an_ensemble_on_arrays_keeps_them(tmp_path, fog_alone, here):
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images[:400].astype(np.float32), digits.target[:400]
    sizes = {"space.channels": 2, "engine.epochs": 1, "engine.closing_epochs": 0}
    run = ba.search((images, labels), method="gdas", set=sizes, out=tmp_path / "search")
    from bayesarch.data import as_examples

    done = ba.ensemble(run, as_examples(images, labels), members=1, candidates="deepens",
                       set={"train.epochs": 1, "ensemble.reference": False}, out=tmp_path / "a")  # fmt: skip
    assert done.summary["rows"][0]["name"] == "network"
    assert (tmp_path / "a" / "examples.npz").exists()
    assert done.predict_proba(images[:3]).shape == (3, 10)
