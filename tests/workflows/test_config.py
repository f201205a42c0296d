import numpy as np
import pytest

from bayesarch.errors import ConfigError
from bayesarch.methods import METHODS
from bayesarch.workflows.config import merge, overrides, read_config, settle


def test_every_wrong_field_is_reported_at_once():
    record = {
        "sede": 3,
        "space": {"name": "nb201", "chanels": 8},
        "method": {"name": "bpnas", "detla": 0.1, "rest": "all"},
        "data": {"limit": -5},
        "engine": {"epochs": "many", "lr": 0},
    }
    with pytest.raises(ConfigError) as caught:
        settle(record)
    message = str(caught.value)
    for part in (
        "7 settings are wrong",
        "sede: unknown section, did you mean 'seed'?",
        "space.chanels: unknown field, did you mean 'channels'?",
        "method.detla: unknown field, did you mean 'delta'?",
        "method.rest: unknown field, did you mean 'reset'?",
        "data.limit:",
        "engine.epochs:",
        "engine.lr:",
        "(got 'many')",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"method": {"name": "bpnass"}}, "method.name: unknown method 'bpnass', did you mean 'bpnas'?"),
        ({"space": {"name": "nb-201"}}, "space.name: unknown space 'nb-201', did you mean 'nb201'?"),
        ({"seed": -1}, "seed: must be a whole number >= 0"),
        ({"seed": True}, "seed"),
        ({"engine": 5}, "engine: must be a section"),
        ({"method": {"name": "bpnas", "test_on": "median"}}, "method.test_on"),
    ],
)
def test_wrong_names_and_values(record, words):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?").replace("(", r"\(")):
        settle(record)


def test_overrides_are_nested_and_typed():
    nested = overrides(["method.delta=0.1", "engine.epochs=3", "data.flip=true", "space.cells=null", "seed=4"])
    assert nested == {
        "method": {"delta": 0.1},
        "engine": {"epochs": 3},
        "data": {"flip": True},
        "space": {"cells": None},
        "seed": 4,
    }
    assert overrides({"method.delta": 0.1}) == {"method": {"delta": 0.1}}
    with pytest.raises(ConfigError, match=r"section\.field=value; got method\.delta"):
        overrides(["method.delta"])


def test_later_layers_win_and_another_name_starts_from_its_defaults():
    merged = merge({"method": "bpnas", "engine": {"lr": 0.1, "epochs": 3}}, {"engine": {"epochs": 5}})
    assert merged == {"method": {"name": "bpnas"}, "engine": {"lr": 0.1, "epochs": 5}}
    merged = merge({"method": {"name": "bpnas", "delta": 0.1}}, {"method": "drnas"})
    assert merged == {"method": {"name": "drnas"}}
    merged = merge({"method": {"name": "bpnas", "delta": 0.1}}, {"method": {"name": "bpnas", "reset": "none"}})
    assert merged["method"] == {"name": "bpnas", "delta": 0.1, "reset": "none"}


@pytest.mark.parametrize("method", METHODS)
def test_the_record_in_force_settles_to_itself(method):
    settings = settle({"method": method and {"name": method}, "engine": {"lr": 0.01}})
    record = settings.record()
    assert settle(record).record() == record
    assert record["engine"]["lr"] == 0.01
    assert record["method"]["name"] == method


def test_config_files(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\nmethod: {name: drnas}\n")
    assert read_config(path) == {"seed": 3, "method": {"name": "drnas"}}
    path.write_text("")
    assert read_config(path) == {}
    for text, message in (("a: [", "no valid YAML"), ("- 1", "must hold settings")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_config(path)
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        read_config(tmp_path / "absent.yaml")


def test_small_data_use_one_cell_a_stage_unless_told(tmp_path):
    from bayesarch.workflows.job import prepare

    arrays = (np.zeros((200, 4, 4), np.uint8), np.arange(200) % 2)
    assert prepare(arrays).settings.sizes.cells == 1
    assert prepare(arrays, set={"space.cells": 5}).settings.sizes.cells == 5
    assert prepare(arrays, set={"space.channels": 4}).settings.sizes.cells == 1
    many = (np.zeros((20_000, 2, 2), np.uint8), np.arange(20_000) % 2)
    assert prepare(many).settings.sizes.cells == 5
    assert prepare(many, limit=5000).settings.sizes.cells == 1
