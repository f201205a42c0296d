import itertools
import time
from pathlib import Path

import pytest

import bayesarch as ba
from bayesarch.errors import ConfigError
from bayesarch.nets import architecture_cost, network_cost, tidy_sizes
from bayesarch.workflows import limits, search
from bayesarch.workflows.job import prepare
from bayesarch.workflows.limits import in_full

QUICK = {"space.channels": 4, "engine.epochs": 3, "engine.closing_epochs": 1}


@pytest.mark.parametrize("method", ["bpnas", "gdas"])
def test_macs_and_params_are_kept_and_said(method, tmp_path):
    free = ba.search("digits", limit=300, method=method, out=tmp_path / "free", set=QUICK)
    assert free.summary["limits"] == {}
    budget = int(0.6 * free.summary["macs"])
    run = ba.search(
        "digits", limit=300, method=method, out=tmp_path / "run", set=QUICK, max_macs=budget, max_params=40_000
    )
    assert run.summary["limits"] == {
        "macs": {"allowed": budget, "found": run.summary["macs"]},
        "params": {"allowed": 40_000, "found": run.summary["params"]},
    }
    assert run.summary["macs"] <= budget < free.summary["macs"]
    cost = architecture_cost(
        run.architecture, sizes=tidy_sizes(run.architecture.space, {"channels": 4, "cells": 1}),
        input_shape=(1, 8, 8), classes=10,
    )  # fmt: skip
    assert (cost.macs, cost.params) == (run.summary["macs"], run.summary["params"])
    assert sum(p.numel() for p in run.network().parameters()) == run.summary["params"]
    assert run.config["limits"]["macs"] == budget
    assert ba.open_run(run.path).posterior.to_json() == run.posterior.to_json()
    assert "Limit on macs" in (tmp_path / "run" / "report.html").read_text()


def test_what_nothing_can_keep_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"no architecture of nb201 .*--max-macs 10 \(the smallest has [0-9,]+\)"):
        ba.search("digits", out=tmp_path / "run", max_macs=10)
    with pytest.raises(ConfigError, match="--max-latency-ms"):
        ba.search("digits", out=tmp_path / "run", max_latency_ms=1e-6)
    assert not (tmp_path / "run").exists()
    smallest = prepare("digits", set=QUICK, max_macs=10**9).limits.base[0]
    assert prepare("digits", set=QUICK, max_macs=int(smallest)).limits  # exactly the smallest is enough
    with pytest.raises(ConfigError):
        prepare("digits", set=QUICK, max_macs=int(smallest) - 1)


def test_a_latency_limit_uses_a_measured_table():
    free = prepare("digits", set=QUICK, max_latency_ms=1e6).limits
    assert free.names == ("latency_ms",)
    assert free.base[0] > 0
    assert [free.costs[0][g] for g in range(0, 30, 5)] == [0.0] * 6


def by_macs(net, shape, **_):
    """A clock that no busy machine moves: a nanosecond a MAC."""
    return network_cost(net, shape).macs / 1e6


def test_a_machine_that_is_busy_for_a_while_leaves_the_latency_table_as_it_is(monkeypatch):
    """Slowed are the cheapest network's first measurement, and later half a round: either alone would spoil it."""
    monkeypatch.setattr(limits, "image_latency", by_macs)
    calm = prepare("digits", set=QUICK, max_latency_ms=1e6).limits
    calls = itertools.count()

    def busy(net, shape, **_):
        slowed = next(calls) in {0, *range(40, 60)}
        return by_macs(net, shape) * (10 if slowed else 1)

    monkeypatch.setattr(limits, "image_latency", busy)
    assert prepare("digits", set=QUICK, max_latency_ms=1e6).limits == calm
    assert min(calm.costs[0][g] for g in range(30) if g % 5 == 3) > 0


def test_a_latency_limit_is_kept_by_that_table(tmp_path, monkeypatch):
    for module in (limits, search):
        monkeypatch.setattr(module, "image_latency", by_macs)
    free = prepare("digits", set=QUICK, max_latency_ms=1e6).limits
    convolutions = [free.costs[0][g] for g in range(30) if g % 5 == 3]
    tight = free.base[0] + 0.5 * sum(convolutions)
    run = ba.search("digits", limit=300, out=tmp_path / "run", set=QUICK, max_latency_ms=tight)
    row = run.summary["limits"]["latency_ms"]
    assert row["allowed"] == tight
    assert row["found"] == run.summary["times"]["latency_ms"]
    assert row["found"] <= tight
    assert not [w for w in run.summary["warnings"] if "limit missed" in w]


def test_minutes_end_a_search_with_the_best_so_far(tmp_path):
    """Three seconds for what would take hours: the clock decides, and there is a posterior."""
    # twenty closing epochs, and 0.8 below: a stall of a busy machine may take a second or two of the three
    settings = {**QUICK, "engine.epochs": 100_000, "engine.closing_epochs": 20, "method.alpha_lr": 1e-6}
    start = time.monotonic()
    run = ba.search("digits", limit=300, out=tmp_path / "run", set=settings, max_minutes=0.05)
    assert time.monotonic() - start < 40
    stages = [record["stage"] for record in run.metrics]
    assert 1 <= stages.count("search") < 2000
    assert 1 <= stages.count("closing") <= 20
    assert run.metrics[-1]["best"] == str(run.architecture) == str(run.best)
    epochs = tuple(
        round(max(record["epoch"] for record in run.metrics if record["stage"] == stage), 1)
        for stage in ("search", "closing")
    )
    searching = [record["lr"] for record in run.metrics if record["stage"] == "search"]
    assert searching[-1] < 0.8 * searching[0], "the schedule ends with the time"
    assert run.summary["times"]["seconds"] < 6
    assert (run.summary["search_epochs"], run.summary["closing_epochs"]) == epochs
    assert run.posterior.kind == "mean-field", "what would be measured at the end is left out when the time is over"


def test_epochs_for_which_there_was_no_time_are_not_claimed(tmp_path):
    """Less time than a step takes: one step, and no closing epochs."""
    run = ba.search("digits", limit=300, out=tmp_path / "run", set=QUICK, max_minutes=1e-5)
    assert run.config["engine"]["closing_epochs"] > 0
    assert run.summary["closing_epochs"] == 0
    assert [record["steps"] for record in run.metrics] == [1]


def test_the_best_so_far_is_there_while_a_search_runs(tmp_path):
    from bayesarch.workflows.search import Listener

    seen = []

    def on_round(record):
        seen.append(ba.open_run(tmp_path / "run").best)
        assert str(seen[-1]) == record["best"]

    ba.search(
        "digits", limit=300, method="darts", out=tmp_path / "run", set=QUICK, listener=Listener(on_round=on_round)
    )
    assert len(seen) == 4
    assert ba.open_run(tmp_path / "run").best == seen[-1]


@pytest.mark.parametrize(("text", "count"), [("40M", 40_000_000), ("2.5m", 2_500_000), ("400k", 400_000), ("12", 12)])
def test_counts_in_full(text, count):
    assert in_full(text, "--max-macs") == count
    assert in_full(None, "--max-macs") is None


@pytest.mark.parametrize("text", ["", "M", "4MM", "many", "1e999"])
def test_counts_that_are_none(text):
    with pytest.raises(ConfigError, match="--max-macs takes a count"):
        in_full(text, "--max-macs")


def test_class_weights_and_metric(tmp_path):
    """Unbalanced data: with balanced weights a rare class counts as much as a frequent one, in loss and metric."""
    import numpy as np

    from bayesarch.engine import score

    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 20 == 0).astype(int)  # 1 in 20
    images = rng.normal(size=(400, 8, 8)).astype(np.float32) + labels[:, None, None]
    job = prepare((images, labels), set={**QUICK, "data.class_weights": "balanced", "data.metric": "balanced_accuracy"})
    batch = next(job.splits["weights"].in_order(1000))
    assert float(batch.weights[batch.labels == 1][0]) == pytest.approx(10, rel=0.1)
    assert float(batch.weights.sum()) == pytest.approx(len(batch.labels), rel=1e-4)
    assert float(batch.weights[batch.labels == 1].sum()) == pytest.approx(float(batch.weights[batch.labels == 0].sum()))
    assert next(prepare((images, labels), set=QUICK).splits["weights"].in_order(9)).weights is None

    import torch
    from sklearn.metrics import balanced_accuracy_score, f1_score

    split = job.splits["selection"]
    logits = torch.randn(len(split), 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, 0.0])
    result = score(lambda x: logits, split, batch_size=1000)
    truth, said = split.labels.numpy(), logits.argmax(1).numpy()
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, said))
    assert result.macro_f1 == pytest.approx(f1_score(truth, said, average="macro"))
    weights = torch.where(split.labels == 1, batch.weights.max(), batch.weights.min())
    each = torch.nn.functional.cross_entropy(logits, split.labels, reduction="none")
    assert result.loss == pytest.approx(float((weights * each).mean()), rel=1e-5)

    run = ba.search((images, labels), out=tmp_path / "run", set={**QUICK, "data.metric": "balanced_accuracy"})
    assert run.summary["metric_value"] == run.summary["selection_balanced_accuracy"]
    assert "balanced accuracy" in Path(run.path, "report.html").read_text()


def test_bootstrap_halves_never_overlap_and_keep_classes():
    import numpy as np

    plain, again = prepare("digits").partition, prepare("digits", set={"data.bootstrap": 3}).partition
    other = prepare("digits", set={"data.bootstrap": 4}).partition
    labels = prepare("digits").examples.labels
    for name in ("weights", "architecture"):
        drawn = again.indices[name]
        assert set(drawn) <= set(plain.indices[name]), "drawn from its own half"
        assert len(drawn) == len(plain.indices[name])
        assert 0.55 < len(set(drawn)) / len(drawn) < 0.72  # 1 - 1/e
        assert np.array_equal(np.bincount(labels[drawn]), np.bincount(labels[plain.indices[name]]))
        assert not np.array_equal(drawn, other.indices[name])
    for name in ("selection", "test"):
        assert np.array_equal(again.indices[name], plain.indices[name])
