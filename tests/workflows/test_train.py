"""`train`: architectures and runs, in folders that go on where they broke off."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import bayesarch as ba
from bayesarch.engine import Interrupted
from bayesarch.errors import ConfigError, DataError, RunError, SpaceError
from bayesarch.spaces import Architecture
from bayesarch.workflows.train import TrainingListener, train

CELL = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|skip_connect~1|nor_conv_1x1~2|"
SMALL = {"space.channels": 4, "space.cells": 1, "train.epochs": 2}
RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "train").glob("*.yaml"))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    return ba.search(
        "digits", method="gdas", out=tmp_path_factory.mktemp("searched") / "run", limit=400,
        set={"space.channels": 4, "engine.epochs": 2, "engine.closing_epochs": 1},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(CELL, "digits", out=tmp_path_factory.mktemp("trained") / "run", limit=400, set=SMALL)


def test_a_training_folder_holds_everything(trained):
    path = Path(trained.path)
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert names == {
        "config.yaml", "environment.json", "data.json", "status.json", "metrics.jsonl", "summary.json", "log.txt",
        "architectures/trained.json", "networks/trained.safetensors", "checkpoints/last.safetensors",
    }  # fmt: skip
    assert trained.status["state"] == "finished"
    assert str(trained.architecture) == CELL
    summary = trained.summary
    assert summary["test"]["n"] == trained.data["sizes"]["test"]
    assert trained.data["sizes"].keys() == {"weights", "selection", "test"}
    assert len(trained.metrics) == 2


def test_the_network_comes_back_as_it_was_scored(trained):
    from bayesarch.data import DataConfig, load, split, splits_on
    from bayesarch.engine import score

    config = DataConfig(source="digits", limit=400)
    examples = load(config)
    parts = splits_on(
        examples, split(examples, config).for_training(), ("weights", "test"), config=config, device=torch.device("cpu")
    )
    result = score(trained.network(), parts["test"], batch_size=64)
    assert result.accuracy == trained.summary["test"]["accuracy"]
    assert result.loss == pytest.approx(trained.summary["test"]["loss"], rel=1e-5)


def test_what_asks_for_a_search_says_so(trained):
    with pytest.raises(RunError, match="training of one architecture"):
        _ = trained.posterior
    with pytest.raises(ConfigError, match="has not been evaluated"):
        ba.compare([trained.path, trained.path])
    with pytest.raises(ConfigError, match="trained networks itself"):
        train(trained)


def test_training_uses_both_halves_and_never_the_test_split(trained):
    from bayesarch.data import DataConfig, load, split

    config = DataConfig(source="digits", limit=400)
    examples = load(config)
    whole = split(examples, config)
    joined = whole.for_training()
    expected = np.sort(np.concatenate([whole.indices["weights"], whole.indices["architecture"]]))
    assert np.array_equal(joined.indices["weights"], expected)
    assert np.array_equal(joined.indices["test"], whole.indices["test"])
    assert trained.data["sizes"]["weights"] == len(expected)


def test_a_runs_cell_from_its_inherited_weights(searched, tmp_path):
    inherited = train(searched, out=tmp_path / "a", inherit=True, set={"train.epochs": 1, "train.lr": 1e-9})
    assert inherited.summary["inherited"]
    assert inherited.architecture == searched.architecture
    assert inherited.config["data"]["limit"] == 400, "the run's data are the default"
    start, end = searched.network().state_dict(), inherited.network().state_dict()
    for name in (name for name in start if name.endswith("weight")):
        assert torch.allclose(start[name], end[name], atol=1e-5)
    fresh = train(searched.path, out=tmp_path / "b", set={"train.epochs": 1, "train.lr": 1e-9})
    assert not torch.allclose(start["head.4.weight"], fresh.network().state_dict()["head.4.weight"], atol=1e-3)


def test_a_broken_training_goes_on_to_the_bit(trained, tmp_path):
    def stop(record):
        raise Interrupted

    with pytest.raises(Interrupted):
        train(CELL, "digits", out=tmp_path / "run", limit=400, set=SMALL, listener=TrainingListener(on_round=stop))
    assert ba.open_run(tmp_path / "run").status["state"] == "interrupted"
    again = ba.resume(tmp_path / "run")
    mine, theirs = trained.network().state_dict(), again.network().state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert ba.resume(tmp_path / "run").status["state"] == "finished"


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda out: train("nowhere", out=out), RunError, "neither a run folder nor an architecture"),
        (lambda out: train(CELL.replace("skip_connect~0", "skap~0"), out=out), SpaceError, "skip_connect"),
        (lambda out: train(CELL, out=out, inherit=True), ConfigError, "finished run"),
        (lambda out: train(CELL, out=out, set={"train.epoch": 3, "space.width": 4}), ConfigError, r"train\.epoch"),
        (lambda out: train(CELL, out=out, config={"engine": {}}), ConfigError, "engine: unknown section"),
        (lambda out: train(CELL, "nowhere.npz", out=out), DataError, "nowhere.npz"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, call, error, says):
    with pytest.raises(error, match=says):
        call(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_take_effect(recipe):
    from bayesarch.workflows.train import _settle

    record = yaml.safe_load(recipe.read_text())
    space = next((name for name in ("tree-cell", "nb201") if recipe.stem.startswith(name[:4])), "darts")
    arch = Architecture(ba.SPACES[space], tuple((1,) for _ in ba.SPACES[space].choices))
    settled = _settle(record, arch, None).record()
    for section, fields in record.items():
        for field, value in fields.items():
            assert settled[section][field] == value
    assert recipe.read_text().startswith("# ")


def test_a_small_recipe_trains_a_genotype(tmp_path):
    picks = [()] * 28
    for position, choice in enumerate(ba.SPACES["darts"].choices):
        if choice.source in ("0", "1"):
            picks[position] = (3,)
    arch = Architecture(ba.SPACES["darts"], tuple(picks))
    recipe = next(path for path in RECIPES if path.stem == "small-digits")
    assert len(str(arch)) > 255, "longer than a file name may be"
    run = train(
        str(arch), space="darts", out=tmp_path / "run", config=recipe, set={"train.epochs": 2, "data.limit": 300}
    )
    assert json.loads(run.config["architecture"]) == arch.to_json()
    assert run.config["train"]["ema"] == 0.98
    assert run.summary["test"]["n"] > 0
