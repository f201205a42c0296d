import math
import statistics
from pathlib import Path

import numpy as np
import pytest

import bayesarch as ba
from bayesarch.errors import ConfigError
from bayesarch.workflows.compare import difference, interval, pareto


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    settings = {"engine.epochs": 3, "engine.closing_epochs": 0}
    for method in ("darts", "snas"):
        for seed in (0, 1, 2):
            ba.search(
                "planted", space="toy", method=method, seed=seed, limit=400, out=out / f"{method}{seed}", set=settings
            )
    ba.search("planted", space="toy", method="darts", seed=3, limit=400, out=out / "slow",
              set={**settings, "method.alpha_lr": 0.001})  # fmt: skip
    ba.search("planted", space="toy", method="darts", seed=0, limit=500, out=out / "other", set=settings)
    return out


def test_intervals_are_student_t():
    values = [0.91, 0.95, 0.93, 0.97]
    result = interval(values)
    half = 2.353363 * statistics.stdev(values) / 2  # t quantile .95 with 3 degrees of freedom, from a table
    assert (result.low, result.high) == pytest.approx((0.94 - half, 0.94 + half), abs=1e-6)
    assert math.isnan(interval([0.5]).low)
    rng = np.random.default_rng(0)
    inside = [(r := interval(rng.normal(size=5))).low <= 0 <= r.high for _ in range(2000)]
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)


def test_differences_are_paired_by_seed():
    """The seeds' own ups and downs, .2 wide, cancel: the interval is that of the differences alone."""
    a, b = {0: 0.5, 1: 0.7, 2: 0.6, 9: 0.1}, {0: 0.49, 1: 0.68, 2: 0.59}
    gap, paired = difference(a, b)
    assert paired
    assert gap.n == 3
    assert gap.mean == pytest.approx(0.04 / 3)
    assert gap.low > 0
    loose, paired = difference(a, {5: 0.49, 6: 0.68, 7: 0.59})
    assert not paired
    assert loose.high - loose.low > 5 * (gap.high - gap.low)


def test_unpaired_differences_are_welch():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 6), rng.normal(1, 3, 9)
    gap, _ = difference(dict(enumerate(a)), dict(enumerate(b, 100)))
    expected = ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert (gap.low, gap.high) == pytest.approx((expected.low, expected.high))


def test_pareto():
    points = [(1.0, 0.9), (2.0, 0.95), (3.0, 0.94), (1.0, 0.8), (2.0, 0.95)]
    assert pareto(points) == [True, True, False, False, True]


def test_runs_side_by_side(folder, tmp_path):
    names = [folder / f"{m}{s}" for m in ("darts", "snas") for s in (0, 1, 2)]
    record = ba.compare(names, out=tmp_path / "page.html")
    assert [(g["name"], g["n"]) for g in record["groups"]] == [("darts", 3), ("snas", 3)]
    accuracies = {
        m: [ba.open_run(folder / f"{m}{s}").summary["selection_accuracy"] for s in (0, 1, 2)] for m in ("darts", "snas")
    }
    snas = record["groups"][1]
    assert snas["difference"]["paired"]
    assert snas["quality"]["mean"] == pytest.approx(statistics.fmean(accuracies["snas"]))
    gaps = [x - y for x, y in zip(accuracies["snas"], accuracies["darts"], strict=True)]
    assert snas["difference"]["mean"] == pytest.approx(statistics.fmean(gaps))
    page = Path(tmp_path / "page.html").read_text()
    assert page.count("<svg") == 1
    assert page.count("<tr") == 1 + 2 + 1 + 6


def test_settings_that_differ_are_named(folder):
    record = ba.compare([folder / "darts0", folder / "darts1", folder / "slow"])
    assert [g["name"] for g in record["groups"]] == ["darts method.alpha_lr=None", "darts method.alpha_lr=0.001"]
    assert not record["groups"][1]["difference"]["paired"]


def test_what_cannot_be_compared(folder):
    with pytest.raises(ConfigError, match="at least two"):
        ba.compare([folder / "darts0"])
    with pytest.raises(ConfigError, match="different examples"):
        ba.compare([folder / "darts0", folder / "other"])


def test_a_repeated_run_stands_for_its_runs(folder, tmp_path, here):
    run = ba.search("planted", space="toy", method="darts", repeats=2, limit=400, out=tmp_path / "r",
                    set={"engine.epochs": 3, "engine.closing_epochs": 0})  # fmt: skip
    record = ba.compare([run.path, folder / "snas0", folder / "snas1"])
    assert [(g["name"], g["n"]) for g in record["groups"]] == [("darts", 2), ("snas", 2)]
    assert record["groups"][1]["difference"]["paired"]
