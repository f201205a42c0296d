"""The formulas of benchmarks/ against closed forms; the records that are committed, and the page written from them."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import bayesarch as ba
from bayesarch.nets import architecture_cost, tidy_sizes
from bayesarch.posteriors import MeanField
from bayesarch.spaces import NB201, TOY, Architecture

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import posterior
import quality
import results_page
from cifar_jpeg import convert, decode
from records import measure
from results_ensembles import stacking_part

CELLS = [Architecture(TOY, picks) for picks in TOY.all_picks()]


def test_log_evidence_is_the_gaussian_density():
    from scipy.stats import multivariate_normal

    rng = np.random.default_rng(0)
    phi, y = rng.normal(size=(30, 5)), rng.normal(size=30)
    covariance = 0.7**2 * np.eye(30) + 1.3**2 * phi @ phi.T
    expected = multivariate_normal(cov=covariance).logpdf(y)
    assert posterior.log_evidence(phi, y, prior=1.3, noise=0.7) == pytest.approx(expected)


def test_log_evidence_is_the_mean_likelihood_under_the_prior():
    """By Monte Carlo over weights drawn from the prior."""
    rng = np.random.default_rng(1)
    phi, y = rng.normal(size=(6, 2)), rng.normal(size=6)
    weights = rng.normal(size=(400_000, 2)) * 0.8
    residuals = y - weights @ phi.T
    logs = -0.5 * (residuals**2).sum(1) - 3 * np.log(2 * np.pi)
    assert posterior.log_evidence(phi, y, prior=0.8, noise=1.0) == pytest.approx(np.log(np.exp(logs).mean()), abs=0.02)


def test_features_are_those_of_the_supernet():
    import torch

    from bayesarch.nets import Supernet

    x = np.random.default_rng(0).choice([-1.0, 1.0], size=(9, 8))
    net = Supernet(TOY, input_shape=(1, 1, 8), classes=2, generator=torch.Generator().manual_seed(0)).double()
    for arch in CELLS:
        theirs = net.layers[0](torch.from_numpy(x), net.one_hot(arch)[0])
        assert np.allclose(posterior.features_of(arch, x), theirs.numpy())


def test_the_exact_posterior_is_calibrated():
    """Problems drawn from the model itself: what has weight w is true in a share w of the problems."""
    weights, true, covered = [], [], []
    for index in range(120):
        rng = np.random.default_rng(index)
        truth = CELLS[int(rng.integers(27))]
        x = rng.choice([-1.0, 1.0], size=(60, 6))
        y = posterior.features_of(truth, x) @ rng.normal(size=6) + 4.0 * rng.normal(size=60)
        logs = [posterior.log_evidence(posterior.features_of(a, x), y, prior=1.0, noise=4.0) for a in CELLS]
        mass = posterior.by_function(dict(zip(CELLS, np.exp(np.array(logs) - max(logs)), strict=True)))
        total = sum(mass.values())
        mass = {name: value / total for name, value in mass.items()}
        weights += list(mass.values())
        true += [float(name == truth.canonical) for name in mass]
        covered.append(posterior.in_credible_set(mass, truth.canonical, 0.9))
    from bayesarch.posteriors.calibration import calibration_error

    assert calibration_error(np.array(weights), np.array(true), bins=5) < 0.03
    assert np.mean(covered) >= 0.85


def test_credible_sets_by_hand():
    mass = {"a": 0.5, "b": 0.3, "c": 0.2}
    assert [posterior.in_credible_set(mass, name, 0.9) for name in "abcd"] == [True, True, True, False]
    assert [posterior.in_credible_set(mass, name, 0.8) for name in "abc"] == [True, True, False]
    assert not posterior.in_credible_set(mass, "b", 0.5)


class Run:
    """A run as `judge` sees it."""

    def __init__(self, table, found):
        self.posterior, self.architecture = MeanField(NB201, table), found
        self.summary = {"selection_accuracy": 0.9, "search_epochs": 1, "times": {"seconds": 1.0}, "forward_macs": 1}


def made_up_runs(truth, sharpness, n=60):
    """Return runs that find cells by `truth` and say `truth` sharpened."""
    rng, runs = np.random.default_rng(0), []
    said = np.exp(sharpness * np.log(truth))
    said /= said.sum()
    for _ in range(n):
        picks = tuple((int(rng.choice(5, p=truth)),) for _ in range(6))
        runs.append(Run([said] * 6, Architecture(NB201, picks)))
    return runs


def test_judge_knows_calibrated_from_sharp_runs():
    truth = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    honest, sharp = (posterior.judge(made_up_runs(truth, s)) for s in (1.0, 4.0))
    assert honest["ece"] < 0.03
    assert sharp["ece"] > 0.1
    assert sharp["tempered"]["temperature"] == pytest.approx(4.0, rel=0.35)
    assert sharp["tempered"]["ece_on_other_half"] < 0.05
    assert honest["log_loss"] < min(sharp["log_loss"], honest["log_loss_of_equal_weights"])
    assert honest["interval_coverage_at_90"] > 0.88


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({"faster": {"alone": 1.5, "together": 3.0}, "ranges": {"alone": [1.2, 1.9], "together": [2.5, 3.25]}},
         ["1.50 (1.20 to 1.90)", "3.00 (2.50 to 3.25)"]),
        ({"ratios": {"plain": 3.1}}, ["2.00", "3.10"]),
    ],
)  # fmt: skip
def test_networks_trained_as_one_are_so_many_times_faster_and_older_records_have_no_range(kept, expected):
    sizes = {"shape": [1, 8, 8], "channels": 8, "networks": 4, "threads": 2}
    row = sizes | {"milliseconds": {"plain": 30.0, "alone": 15.0, "together": 10.0}} | kept
    (page,) = stacking_part("", {"rows": [row], "rounds": 5}, lambda head, body: f"{head[5:]}{body}", lambda record: "")
    said = ["1 × 8 × 8", "8", "4", "2", "30.0", *expected]
    assert f"['one after another', 'as one']{[said]}" in page


def test_targets_meet_both_bounds_in_the_rounds_given_by_equal_factors():
    from against_pruning import SHARES, targets

    shares = targets([7, 11])
    assert len(shares) == 11
    assert (shares[6], shares[10]) == (SHARES[0], SHARES[1])
    for part, steps, factor in (([1.0, *shares[:7]], 7, 0.5), (shares[6:], 4, 0.5)):
        np.testing.assert_allclose(np.divide(part[1:], part[:-1]), factor ** (1 / steps))


def test_cifar_adapter(shared_data, tmp_path):
    """Official order and labels; the first image of the training set is a frog, and JPEG keeps it recognisable."""
    source = shared_data / "cifar10_jpegq75.npz"
    images = decode(source, np.array([0, 1, 49_999]))
    assert images.shape == (3, 32, 32, 3)
    assert images.std() > 30
    convert(source, tmp_path / "c.npz", train=50, test=20)
    with np.load(tmp_path / "c.npz") as file:
        assert np.array_equal(np.bincount(file["y_train"]), [5] * 10)
        assert np.array_equal(np.bincount(file["y_test"]), [2] * 10)
        with np.load(source) as whole:
            first = int(np.flatnonzero(whole["y_train"] == file["y_train"][0])[0])
        assert np.array_equal(file["x_train"][0], decode(source, np.array([first]))[0])


RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.long
def test_random_search_spends_what_the_reference_spent(tmp_path):
    """Its ranking included; what it draws varies, and so does what it costs."""
    sets = {"space.channels": 2, "space.cells": 1, "engine.batch_size": 16, "method.candidates": 9}
    task = {"data": "digits", "limit": 300, "sets": sets}
    record = tmp_path / "record.json"
    rows = [{"method": "bpnas", "seed": seed, "forward_macs": macs} for seed, macs in enumerate((1.5e8, 2.5e8))]
    record.write_text(json.dumps({"rows": rows}))
    epochs = quality.matched_epochs(argparse.Namespace(out=record), task)
    sets = quality.sets_of(task, "random", epochs) | {"engine.closing_epochs": 0}
    run = ba.search("digits", method="random", limit=300, out=tmp_path / "run", set=sets)
    assert run.summary["search_epochs"] == epochs > 10
    assert run.summary["forward_macs"] == pytest.approx(2e8, rel=0.05)
    sizes = tidy_sizes(NB201, {"channels": 2, "cells": 1})
    cells = [Architecture(NB201, picks) for picks in list(NB201.all_picks())[::32]]
    cost = np.mean([architecture_cost(cell, sizes=sizes, input_shape=(1, 8, 8), classes=10).macs for cell in cells])
    assert run.summary["images"] * cost == pytest.approx(2e8, rel=0.025)


def test_rows_have_the_commit_that_was_there_before_the_record_grew(tmp_path, monkeypatch):
    out = tmp_path / "record.json"
    out.write_text(json.dumps({"rows": {"old": {"commit": "of old"}, "first": {}}}))
    before = out.read_text()

    def described(device):
        return {"commit": "new" if out.read_text() == before else "new-dirty"}

    monkeypatch.setattr("bayesarch.workflows.environment.environment", described)
    measure({"first": lambda: {"n": 1}, "second": lambda: {"n": 2}}, ["first", "second"], out)
    rows = json.loads(out.read_text())["rows"]
    assert {name: row["commit"] for name, row in rows.items()} == {"old": "of old", "first": "new", "second": "new"}
    assert [rows[name]["n"] for name in ("first", "second")] == [1, 2]


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_every_record_says_where_it_is_from(path):
    record = json.loads(path.read_text())
    assert record["command"].startswith("python benchmarks/")
    assert record["environment"]["torch"]
    assert record["environment"]["processor"]


def test_the_page_is_written_from_the_records():
    """docs/results.md is never edited by hand: python benchmarks/quality.py page"""
    assert results_page.page() == results_page.PAGE.read_text()
    for name, text in results_page.pictures().items():
        drawn = (results_page.PAGE.parent / "figures" / name).read_text()
        titles = [line for line in text.splitlines() if "ECE" in line]
        source = name.replace("reliability_", "posterior_").replace(".svg", ".json")
        record = json.loads((ROOT / "benchmarks" / "results" / source).read_text())
        assert len(titles) == len(record["methods"]) > 0
        assert titles == [line for line in drawn.splitlines() if "ECE" in line]
