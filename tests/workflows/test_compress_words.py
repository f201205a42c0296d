"""What a compression takes for granted, refuses and says."""

import json

import pytest
from torch import nn

import bayesarch as ba
from bayesarch.errors import ConfigError, NumericalError, RunError
from bayesarch.workflows.compress_settings import settle_compression

SMALL = {
    "train.epochs": 3, "compress.dense_epochs": 8, "compress.dense_lr": 0.1, "compress.finetune_epochs": 4,
    "compress.curvature_examples": 300,
    "compress.at_most": 0.2, "compress.growth": 2.0, "compress.penalty_share": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "said", "price"),
    [({}, {}, "weights"), ({"max_params": 9}, {}, "weights"), ({"max_macs": 9}, {}, "macs"),
     ({"max_latency_ms": 1}, {}, "macs"), ({"max_macs": 9}, {"price": "weights"}, "weights")],
)  # fmt: skip
def test_the_prior_charges_for_what_is_limited(limits, said, price):
    settings = settle_compression({"compress": {"module": "lenet-5", **said}, "limits": limits})
    assert settings.compress.price == price
    assert settle_compression(settings.record()).compress.price == price


@pytest.mark.parametrize("method", ["bernoulli", "magnitude", "random", "group-lasso"])
def test_only_the_evidence_judges_other_groups(method):
    with pytest.raises(ConfigError, match=r"compress.also: .* judges units alone"):
        settle_compression({"compress": {"module": "lenet-5", "method": method, "also": ["weights"]}})


@pytest.mark.parametrize("method", ["bernoulli", "group-lasso"])
@pytest.mark.parametrize("off", [{"penalty": False}, {"penalty_share": 0.0}], ids=["no penalty", "no share"])
def test_ways_that_live_on_what_training_pays_say_so(method, off):
    with pytest.raises(ConfigError, match=f"compress.method: {method} finds nobody to cut unless training pays"):
        settle_compression({"compress": {"method": method, **off}})
    assert settle_compression({"compress": {"method": "evidence", **off}}).compress.method == "evidence"


def test_a_network_that_learned_nothing_is_not_made_smaller(tmp_path):
    given = SMALL | {"compress.dense_lr": 1e-9, "compress.dense_epochs": 1}
    with pytest.raises(NumericalError, match=r"learned nothing: accuracy 0\.\d+ .* lower compress\.dense_lr \(1e-09\)"):
        ba.compress("lenet-300-100", "digits", max_params=9_000, set=given, out=tmp_path / "a")
    assert json.loads((tmp_path / "a" / "status.json").read_text())["state"] == "failed"


def test_what_cannot_be_met_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"max_params.*smallest network") as told:
        ba.compress("lenet-300-100", "digits", max_params=5, max_macs=5, out=tmp_path / "x")
    assert "max_macs" in str(told.value)
    with pytest.raises(ConfigError) as both:
        ba.compress("lenet-300-100", "digits", set={"compress.lam": -1, "train.ema": 0.9}, out=tmp_path / "x")
    assert "compress.lam" in str(both.value)
    assert "moving averages" in str(both.value)
    with pytest.raises(ConfigError, match=r"lenet-300-10.*lenet-300-100"):
        ba.compress("lenet-300-10", "digits", out=tmp_path / "x")
    with pytest.raises(ConfigError, match="nothing of this network can be cut"):
        ba.compress(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "digits", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_path_that_ends_too_early_says_how_far_it_came(tmp_path):
    with pytest.raises(RunError, match=r"after 1 rounds the network has [\d,]+ parameters"):
        ba.compress("lenet-300-100", "digits", max_params=900, set={**SMALL, "compress.rounds": 1}, out=tmp_path / "x")
    assert ba.open_run(tmp_path / "x").status["state"] == "failed"


@pytest.mark.parametrize(("limits", "drop"), [({}, 0.01), ({"max_macs": 9}, None), ({"max_drop": 0.02}, 0.02)])
def test_without_a_limit_a_hundredth_of_accuracy_may_go(limits, drop):
    assert settle_compression({"limits": limits}).drop == drop


def test_images_that_a_network_cannot_take_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        ConfigError, match=r"LeNet5 takes no images of 1 x 8 x 8 .*Kernel size.*of the size that it was"
    ):
        ba.compress("lenet-5", "digits", out=tmp_path / "a", max_params=20_000)
    assert not (tmp_path / "a").exists()
