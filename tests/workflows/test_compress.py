"""Compression as a user does it: limits kept, the file smaller and the same network, a break that changes nothing."""

import copy
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import bayesarch as ba
from bayesarch.data import DataConfig, load, split
from bayesarch.engine import pressure_of_round
from bayesarch.errors import ConfigError, RunError
from bayesarch.nets import network_cost
from bayesarch.nets.classics import CLASSICS
from bayesarch.nets.slicing import PickChannels
from bayesarch.terminal import print_compression
from bayesarch.workflows import compress as workflow
from bayesarch.workflows import compression
from bayesarch.workflows.compress import CompressionListener
from bayesarch.workflows.compress_settings import settle_compression
from bayesarch.workflows.overview import overview
from bayesarch.workflows.rewrite import rewrite

SMALL = {
    "train.epochs": 3, "compress.dense_epochs": 8, "compress.dense_lr": 0.1, "compress.finetune_epochs": 4,
    "compress.curvature_examples": 300,
    "compress.at_most": 0.2, "compress.growth": 2.0, "compress.penalty_share": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("compress") / "run"
    return ba.compress("lenet-300-100", "digits", method="evidence", max_params=9_000, set=SMALL, out=out)


def test_the_limit_is_kept_and_the_numbers_are_those_of_the_network(made):
    summary, net = made.summary, made.network()
    cost = network_cost(net, (1, 8, 8))
    assert summary["params"] == cost.params <= 9_000
    assert summary["macs"] == cost.macs
    assert type(net).__name__ == "Perceptron"
    (row,) = overview(Path(made.path).parent)
    assert (row["kind"], row["of"], row["state"]) == ("compression", "evidence", "finished")
    assert (row["accuracy"], row["split"]) == (summary["rows"][1]["accuracy"]["value"], "test")
    dense, small = summary["rows"]
    assert dense["params"] == sum(p.numel() for p in CLASSICS["lenet-300-100"]((1, 8, 8), 10).parameters())
    assert small["bytes"] < dense["bytes"] * 1.2 * small["params"] / dense["params"] + 4000
    assert small["accuracy"]["value"] > 0.9
    gap = summary["difference"]["accuracy"]
    assert gap["value"] == pytest.approx(small["accuracy"]["value"] - dense["accuracy"]["value"])
    assert gap["low"] <= gap["value"] <= gap["high"]
    for row in (dense, small):
        for key in ("accuracy", "nll", "ece_width", "auroc"):
            assert row[key]["low"] <= row[key]["value"] <= row[key]["high"]


def test_the_test_score_is_that_of_the_saved_network(made):
    config = DataConfig(**made.config["data"])
    data = load(config)
    images, labels = split(data, config).for_training().take(data, "test")
    assert np.mean(made.predict(images) == np.array(made.data["classes"])[labels]) == pytest.approx(
        made.summary["rows"][1]["accuracy"]["value"]
    )


def test_rounds_lose_units_and_never_win_any_back(made):
    sizes = [record["params"] for record in made.metrics]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 9_000 < sizes[-2]
    lams = [record["lam"] for record in made.metrics]
    assert lams == sorted(lams)
    state = safetensors.torch.load_file(made.folder.path / "rounds" / "000.safetensors")
    assert int(state["keep"].sum()) < len(state["keep"])


def test_the_last_round_takes_no_more_than_the_limit_asks_for(made):
    assert made.metrics[-1]["dead"] > made.metrics[-2]["units"] - made.metrics[-1]["units"]
    first, second, _ = (p.shape for p in made.network().parameters() if p.ndim > 1)
    dearest = max(first[1] + 1 + second[0], second[1] + 1 + 10)
    assert 9_000 - dearest < made.summary["params"] <= 9_000


def test_a_limit_that_is_kept_does_not_hold_up_one_on_latency(made, tmp_path, monkeypatch):
    monkeypatch.setattr(
        compression, "image_latency", lambda net, shape, **_: sum(p.numel() for p in net.parameters()) / 1000
    )
    run = ba.compress(
        "lenet-300-100", "digits", weights=made.folder.path / "networks" / "dense.safetensors", method="magnitude",
        max_params=51_000, max_latency_ms=12.0, set=SMALL | {"train.epochs": 1}, out=tmp_path / "a",
    )  # fmt: skip
    assert run.summary["params"] <= 12_000 < run.metrics[-2]["params"] < run.summary["rows"][0]["params"] <= 51_000


def test_nothing_is_cut_of_a_network_that_keeps_the_limits_and_that_is_said(made, tmp_path, capsys):
    run = ba.compress(
        "lenet-300-100", "digits", weights=made.folder.path / "networks" / "dense.safetensors", method="magnitude",
        max_params=51_000, max_macs=51_000, set=SMALL | {"train.epochs": 1}, out=tmp_path / "a",
    )  # fmt: skip
    assert len(run.metrics) == 1
    assert run.summary["params"] == made.summary["rows"][0]["params"]
    print_compression(run)
    assert "nothing was cut: the network keeps the limits as it is" in capsys.readouterr().out
    print_compression(made)
    assert "nothing was cut" not in capsys.readouterr().out


def test_where_accuracy_alone_is_limited_the_path_goes_on_as_long_as_it_holds(made, tmp_path):
    run = ba.compress(
        "lenet-300-100", "digits", weights=made.folder.path / "networks" / "dense.safetensors", method="magnitude",
        max_drop=0.05, set=SMALL | {"train.epochs": 1, "compress.rounds": 6}, out=tmp_path / "a",
    )  # fmt: skip
    sizes = [record["params"] for record in run.metrics]
    assert all(later < earlier for earlier, later in itertools.pairwise(sizes))
    assert run.summary["params"] < made.summary["rows"][0]["params"] / 2
    assert run.summary["selection"]["small"] >= run.summary["selection"]["dense"] - 0.05


def test_layers_add_up(made):
    table = made.summary["layers"]
    assert sum(row["after"]["macs"] for row in table) == made.summary["macs"]
    assert sum(row["before"]["macs"] for row in table) == made.summary["rows"][0]["macs"]
    shapes = [tuple(p.shape) for p in made.network().parameters() if p.ndim > 1]
    assert [tuple(row["after"]["shape"]) for row in table] == shapes


def broken_after(rounds, out, **given):
    """Break a compression of digits off after so many rounds, go on with it, and return it."""

    class Stop(Exception):
        pass

    def on_round(record):
        if record["epoch"] == rounds:
            raise Stop

    with pytest.raises(Stop):
        ba.compress("lenet-300-100", "digits", **given, out=out, listener=CompressionListener(on_round=on_round))
    status = json.loads((out / "status.json").read_text())
    (out / "status.json").write_text(json.dumps({**status, "pid": 2**30}))
    return ba.resume(out)


def test_a_broken_compression_ends_as_an_unbroken_one(made, tmp_path):
    done = broken_after(2, tmp_path / "b", method="evidence", max_params=9_000, set=SMALL)
    mine, other = (
        safetensors.torch.load_file(run.folder.path / "networks" / "small.safetensors") for run in (done, made)
    )
    assert set(mine) == set(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert done.summary["rows"][1]["nll"] == made.summary["rows"][1]["nll"]


def test_masks_cut_what_they_learned_to_drop_and_a_break_forgets_nothing(made, tmp_path):
    weights = made.folder.path / "networks" / "dense.safetensors"
    given = {"weights": weights, "method": "bernoulli", "max_params": 25_000}
    settings = {**SMALL, "compress.finetune_epochs": 1, "compress.lam": 0.03}
    whole = ba.compress("lenet-300-100", "digits", **given, set=settings, out=tmp_path / "a")
    first, *others = whole.metrics
    assert first["dead"] == 0  # nothing is known yet
    assert any(record["dead"] > 0 for record in others)
    assert whole.summary["params"] <= 25_000
    assert whole.summary["rows"][1]["accuracy"]["value"] > 0.85
    state = safetensors.torch.load_file(whole.folder.path / "rounds" / "001.safetensors")
    left = state["keep"].bool()
    assert state["known"].shape == left.shape
    gone_on = broken_after(3, tmp_path / "b", **given, set=settings)
    mine, other = (
        safetensors.torch.load_file(run.folder.path / "networks" / "small.safetensors") for run in (gone_on, whole)
    )
    assert all(torch.equal(mine[name], other[name]) for name in other)
    assert [r["dead"] for r in gone_on.metrics] == [r["dead"] for r in whole.metrics]


def test_switches_keep_a_limit_and_a_break_changes_nothing(made, tmp_path):
    weights = made.folder.path / "networks" / "dense.safetensors"
    given = {"weights": weights, "method": "switches", "max_macs": 20_000, "set": SMALL}
    run = ba.compress("lenet-300-100", "digits", **given, out=tmp_path / "a")
    assert run.summary["macs"] <= 20_000
    assert run.summary["rows"][1]["accuracy"]["value"] > 0.9
    assert run.config["compress"]["price"] == "macs"
    broken = broken_after(2, tmp_path / "b", **given)
    for name, p in broken.network().named_parameters():
        assert torch.equal(p, run.network().get_parameter(name)), name


def test_training_pays_by_the_lambda_at_which_no_more_are_dead_than_may_leave(made, tmp_path, monkeypatch):
    weights, paid = made.folder.path / "networks" / "dense.safetensors", []

    def pressure(net, units, free, asked):
        paid.append(asked.lam)
        return pressure_of_round(net, units, free, asked)

    monkeypatch.setattr(compression, "pressure_of_round", pressure)
    given = SMALL | {
        "compress.at_most": 0.05,
        "compress.growth": 8.0,
        "compress.lam": 1e-4,
        "train.epochs": 1,
        "compress.finetune_epochs": 1,
    }
    run = ba.compress(
        "lenet-300-100", "digits", weights=weights, method="switches", max_params=25_000, set=given, out=tmp_path / "a"
    )
    assert paid == [record["paid_lam"] for record in run.metrics]
    assert any(record["paid_lam"] < record["lam"] for record in run.metrics)


def test_groups_that_go_to_zero_inside_units_stay_there(made, tmp_path, capsys):
    weights = made.folder.path / "networks" / "dense.safetensors"
    given = {
        "weights": weights, "method": "evidence", "max_params": 30_000,
        "set": SMALL | {"compress.also": ["weights", "channels"], "compress.lam": 0.1},
    }  # fmt: skip
    run = ba.compress("lenet-300-100", "digits", **given, out=tmp_path / "a")
    counts = [record["nonzero"] for record in run.metrics]
    assert counts == sorted(counts, reverse=True)
    small = {name: p for name, p in run.network().named_parameters() if p.ndim > 1}
    left = {row["layer"]: row["after"]["nonzero"] for row in run.summary["layers"]}
    assert [int(p.count_nonzero()) for p in small.values()] == list(left.values())
    total = sum(p.numel() for p in small.values())
    assert sum(left.values()) <= counts[run.summary["round"] - 1] < 0.95 * total
    print_compression(run)
    assert f"{sum(left.values()):,} of {total:,} weights (weights, channels)" in capsys.readouterr().out
    page = (run.folder.path / "report.html").read_text()
    assert "weights not zero" in page
    assert "weights not zero" not in (made.folder.path / "report.html").read_text()
    broken = broken_after(2, tmp_path / "b", **given)
    for name, p in broken.network().named_parameters():
        assert torch.equal(p, run.network().get_parameter(name)), name


def test_a_module_of_ones_own_with_its_weights(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.Linear(12 * 36, 10)\n\n"
        "    def forward(self, x):\n        return self.c(self.b(self.a(x)).relu().view(-1, 12 * 36))\n"
    )
    first = ba.compress(f"{file}:Net", "digits", max_macs=20_000, set=SMALL, out=tmp_path / "a")
    assert first.summary["macs"] <= 20_000
    weights = first.folder.path / "networks" / "dense.safetensors"
    again = ba.compress(
        f"{file}:Net", "digits", weights=weights, method="magnitude", max_macs=20_000, set=SMALL, out=tmp_path / "c"
    )
    assert again.summary["rows"][0]["accuracy"] == first.summary["rows"][0]["accuracy"]
    assert again.summary["method"] == "magnitude"
    assert type(again.network()).__name__ == "Net"
    with pytest.raises(ConfigError, match="does not fill this network"):
        ba.compress("lenet-5", "digits", weights=weights, out=tmp_path / "d")


def test_gradients_are_clipped_unless_it_is_said(made):
    """LeNet-5 on all of MNIST came out as not a number without, in its first epoch."""
    assert made.config["train"]["clip"] == 5.0
    assert settle_compression({"compress": {"module": "lenet-5"}, "train": {"clip": 0.0}}).train.clip == 0.0


def test_a_module_given_in_python_is_copied_and_asked_for_again(made, tmp_path):
    net = CLASSICS["lenet-300-100"]((1, 8, 8), 10)
    before = copy.deepcopy(net.state_dict())
    done = ba.compress(
        net, "digits", weights=made.folder.path / "networks" / "dense.safetensors", max_params=14_000,
        method="evidence", set={**SMALL, "compress.inputs": True}, out=tmp_path / "m",
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(RunError, match=r"run\.network"):
        done.network()
    units = [record["units"] for record in done.metrics]
    assert all(later < earlier for earlier, later in itertools.pairwise(units))  # inputs that left do not come back
    small = done.network(net)
    picked = next(module for module in small.modules() if isinstance(module, PickChannels))
    last = safetensors.torch.load_file(sorted((tmp_path / "m" / "rounds").iterdir())[-1])
    read = last["net/1.weight"].abs().sum(0) > 0  # trained for rounds after the first inputs had left
    assert int(read.sum()) == len(picked.index) < 64
    assert done.summary["rows"][0]["accuracy"] == made.summary["rows"][0]["accuracy"]
    assert network_cost(small, (1, 8, 8)).params == done.summary["params"] <= 14_000
    (tmp_path / "m" / "status.json").write_text('{"format": 1, "state": "interrupted"}')
    with pytest.raises(RunError, match="module="):
        ba.resume(tmp_path / "m")


def test_the_front_scores_several_sizes_of_one_path(made, tmp_path):
    """Each point is what a run with that limit ends at: same units, same weights, same scores."""
    bounds = [30_000, 9_000]
    whole, *rows = workflow.front(made.path, bounds)
    assert whole["params"] == made.summary["rows"][0]["params"]
    assert whole["accuracy"] == made.summary["rows"][0]["accuracy"]
    weights, prices = made.folder.path / "networks" / "dense.safetensors", SMALL | {"compress.price": "weights"}
    for row, bound in zip(rows[1:], bounds[1:], strict=True):  # the path to it leads through the other
        out = tmp_path / str(bound)
        run = ba.compress(
            "lenet-300-100", "digits", weights=weights, method="evidence", max_macs=bound, set=prices, out=out
        )
        assert row["macs"] == run.summary["macs"] <= bound
        assert row["round"] == run.summary["round"]
        assert row["layers"] == run.summary["layers"]
        for key in ("accuracy", "nll", "ece_width", "auroc"):
            assert row[key]["value"] == run.summary["rows"][1][key]["value"], key
        assert row["difference"] == run.summary["difference"]
    fewer = workflow.front(made.path, bounds[:1], epochs=1)[1]
    assert fewer["nll"]["value"] != rows[0]["nll"]["value"]
    with pytest.raises(RunError, match="no network of the path has at most 10 MACs"):
        workflow.front(made.path, [10])


def test_the_smaller_network_is_evaluated_and_exported_like_any_other(made, tmp_path):
    record = ba.evaluate(made.path, corruptions=["fog"], severities=[3])
    assert record["rows"][0]["accuracy"]["value"] == pytest.approx(made.summary["rows"][1]["accuracy"]["value"])
    assert record["costs"][0]["params"] == made.summary["params"]
    (row,) = ba.export(made, format="source", out=tmp_path / "small.py")
    assert row["difference"] < 1e-5
    assert row["bytes"] < made.summary["rows"][0]["bytes"]


def test_what_wants_a_search_says_what_this_is(made, tmp_path):
    with pytest.raises(RunError, match="a network made smaller"):
        made.posterior  # noqa: B018
    with pytest.raises(ConfigError, match="is no search"):
        ba.ensemble(made.path, out=tmp_path / "e")
    with pytest.raises(ConfigError, match="give the search"):
        ba.train(made.path, out=tmp_path / "t")


def test_the_page_is_written_again_and_runs_are_set_side_by_side(made, tmp_path):
    page = made.folder.path / "report.html"
    before = page.read_text()
    page.unlink()
    assert f"{made.path}/report.html" in rewrite(made.path)
    assert page.read_text() == before
    ba.evaluate(made.path, corruptions=[])
    shutil.copytree(made.path, tmp_path / "again")
    record = ba.compare([made.path, tmp_path / "again"])
    assert [row["params"] for row in record["rows"]] == [made.summary["params"]] * 2
    assert record["rows"][1]["accuracy_difference"]["value"] == 0
