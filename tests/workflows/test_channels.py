"""PGNAS as a user runs it: a space of a network's channels, a module of one's own, errors that help."""

import json
from pathlib import Path

import pytest
import torch

import bayesarch as ba
from bayesarch.errors import ConfigError

MY_NET = Path(__file__).parents[2] / "examples" / "my_net.py"
SMALL = {"engine.epochs": 2, "method.candidates": 6, "method.controls": 2}


def test_a_search_of_a_networks_channels_ends_in_a_smaller_network(tmp_path):
    sizes = {"space.width": 4, "space.blocks": 1}
    given = {**sizes, **SMALL}
    run = ba.search("digits", method="pgnas", space="shake-shake", limit=400, set=given, out=tmp_path / "a")
    again = ba.open_run(run.path)
    assert again.posterior.kind == "channel-masks"
    assert again.posterior.to_json() == run.posterior.to_json()
    net = again.network()
    assert sum(p.numel() for p in net.parameters()) == run.summary["params"]
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    chosen = again.architecture
    assert str(chosen) == run.summary["cell"]
    assert again.best == chosen
    assert len(run.summary["candidates"]) == 6
    assert {row["name"] for row in run.summary["rows"]} == {
        "best candidate", "best candidate, norms recalibrated", "all candidates", "mode", "whole network",
        "random masks",
    }  # fmt: skip
    assert run.summary["test"]["n"] == again.data["sizes"]["test"]
    config = again.config
    assert config["engine"]["weight_decay"] == 0.0
    assert config["data"]["fractions"] == [0.7, 0.1, 0.1, 0.1]
    page = Path(run.path, "report.html").read_text()
    assert 'id="masks"' in page
    assert "random masks" in page
    drawn = again.posterior.sample(2, seed=0)
    assert ba.Architecture.parse(str(drawn[0]), drawn[0].space) == drawn[0]
    from bayesarch.workflows.sample import sample

    assert all(row["params"] > 0 for row in sample(run.path, 2, seed=0))
    assert ba.resume(run.path).status["state"] == "finished"


def test_settings_of_ones_own_outweigh_a_methods_defaults(tmp_path):
    from bayesarch.workflows.config import settle

    given = {"method": {"name": "pgnas"}, "space": {"name": "shake-shake"}, "engine": {"weight_decay": 0.01}}
    settings = settle(given)
    assert settings.engine.weight_decay == 0.01
    assert settings.engine.nesterov
    assert settle({}).engine.weight_decay == 3e-4


def test_a_module_of_ones_own(tmp_path):
    path = f"{MY_NET}:Net"
    run = ba.search(
        "digits", space="module", method="pgnas", limit=400, set={"space.path": path, **SMALL}, out=tmp_path / "a"
    )
    net = ba.open_run(run.path).network()
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    whole = 24 * 9 + 24 + 48 + 24 * 48 * 9 + 48 + 96 + 48 * 24 * 9 + 24 + 24 * 10 + 10
    assert run.summary["params"] < whole
    assert json.loads(Path(run.path, "posterior.json").read_text())["channels"] == {
        "stem.0": 1, "block.0": 24, "block.3": 48, "head": 24
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.py:Net", "no file 'nowhere.py'"),
        ("", "give --module FILE.py:NAME"),
        (f"{MY_NET}:Nit", "its modules are Net"),
    ],
)
def test_a_wrong_module_is_named(path, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        ba.search("digits", space="module", method="pgnas", set={"space.path": path}, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_methods_and_spaces_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="take --method pgnas"):
        ba.search("digits", space="shake-shake", method="bpnas", out=tmp_path / "a")
    with pytest.raises(ConfigError, match="decides on channels and space 'nb201' has operations"):
        ba.search("digits", space="nb201", method="pgnas", out=tmp_path / "a")
    with pytest.raises(ConfigError, match=r"--max-params 100 \(the smallest has"):
        ba.search("digits", space="shake-shake", method="pgnas", max_params=100, out=tmp_path / "a")
    with pytest.raises(ConfigError, match="give --max-macs"):
        ba.search("digits", space="shake-shake", method="pgnas", max_latency_ms=1.0, out=tmp_path / "a")
    with pytest.raises(ConfigError, match="do not add up"):
        ba.search("digits", space="mlp", max_params=1000, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_hard_limits_hold_for_what_is_found(tmp_path):
    given = {"space.width": 4, "space.blocks": 1, **SMALL}
    run = ba.search(
        "digits", space="shake-shake", method="pgnas", limit=400, max_params=6000, max_macs=90_000, set=given,
        out=tmp_path / "a",
    )  # fmt: skip
    net = run.network()
    assert sum(p.numel() for p in net.parameters()) == run.summary["params"] <= 6000
    assert run.summary["macs"] <= 90_000
    assert run.summary["limits"]["params"] == {"allowed": 6000, "found": run.summary["params"]}
    assert "raised by" in " ".join(run.summary["warnings"])
