"""Runs in TensorBoard: its own reader finds what the records say."""

import sys
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import bayesarch as ba
from bayesarch.errors import ConfigError, RunError
from bayesarch.runs import RunFolder
from bayesarch.spaces import TOY
from bayesarch.workflows import events


def read(path):
    """Return {tag: [(step, value, time)]} of a run's event files."""
    seen = EventAccumulator(str(path / "tensorboard"))
    seen.Reload()
    return {tag: [(e.step, e.value, e.wall_time) for e in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}


@pytest.fixture
def folder(tmp_path):
    made = RunFolder.create(tmp_path / "road" / "search")
    made.write_config({"space": {"name": "toy"}})
    return made


def test_a_record_becomes_scalars():
    record = {
        "selection_accuracy": 0.5, "weights_loss": 2, "lr": 0.1, "steps": 7, "round": 1, "stage": "search",
        "best": "|a|", "odd": float("nan"), "flag": True,
        "weights": [[0.1, 0.2, 0.7], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    }  # fmt: skip
    plain = {"accuracy/selection": 0.5, "loss/weights": 2.0, "run/lr": 0.1}
    assert dict(events.scalars(record)) == plain
    named = {f"weights/{c.name}/{o}": w for c, row in zip(TOY.choices, record["weights"], strict=True)
             for o, w in zip(c.options, row, strict=True)}  # fmt: skip
    assert len(named) == 9
    assert dict(events.scalars(record, TOY)) == plain | named
    assert dict(events.scalars({**record, "weights": [[1.0]]}, TOY)) == plain, "of another space"


def test_what_came_since_is_added_and_what_was_cut_back_is_written_anew(folder):
    mirror = events.Mirror(folder)
    for epoch in (1, 2):
        folder.append_metrics({"epoch": epoch, "steps": 10 * epoch, "seconds": 1.5 * epoch, "training_loss": 1 / epoch})
        assert mirror.update() == epoch
    assert mirror.update() == 2
    first, second = read(folder.path)["loss/training"]
    assert (first[:2], second[:2]) == ((10, 1.0), (20, 0.5))
    assert second[2] - first[2] == pytest.approx(1.5, abs=1e-3)
    folder.keep_metrics(1)
    folder.append_metrics({"epoch": 2, "training_loss": 0.25})
    folder.keep_metrics(1)
    assert mirror.update() == 1
    folder.append_metrics({"epoch": 2, "training_loss": 0.125})
    assert mirror.update() == 2
    assert [e[:2] for e in read(folder.path)["loss/training"]] == [(10, 1.0), (2, 0.125)]
    mirror.close()


def test_runs_below_and_new_ones_are_followed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "SECONDS", 0.01)
    folder.append_metrics({"epoch": 1, "training_loss": 1.0})
    damaged = RunFolder.create(tmp_path / "damaged")
    damaged.append_metrics({"epoch": 1})
    stop = threading.Event()
    looks = events.follow(tmp_path, stop)
    assert next(looks) == (1, 1)
    member = RunFolder.create(folder.path / "members" / "000")
    member.write_config({"space": {"name": "toy"}})
    member.append_metrics({"epoch": 1, "training_loss": 3.0})
    folder.append_metrics({"epoch": 2, "training_loss": 0.5})
    assert next(looks) == (2, 3)
    stop.set()
    assert list(looks) == []
    assert [e[:2] for e in read(folder.path)["loss/training"]] == [(1, 1.0), (2, 0.5)]
    assert [e[:2] for e in read(member.path)["loss/training"]] == [(1, 3.0)]
    assert list(events.follow(tmp_path)) == [(2, 3)], "once"


def test_a_search_is_written_as_it_was(tmp_path):
    run = ba.search("planted", space="toy", method="darts", limit=300, out=tmp_path / "run",
                    set={"engine.epochs": 3, "engine.closing_epochs": 1})  # fmt: skip
    assert list(events.follow(run.path)) == [(1, 4)]
    found = read(tmp_path / "run")
    for tag, key in (("accuracy/selection", "selection_accuracy"), ("loss/weights", "weights_loss")):
        expected = [(record["steps"], pytest.approx(record[key])) for record in run.metrics]
        assert [e[:2] for e in found[tag]] == expected
    last = [record["weights"] for record in run.metrics if "weights" in record][-1]
    assert found["weights/1<-0/product"][-1][1] == pytest.approx(last[0][TOY.choices[0].options.index("product")])


def test_without_tensorboard_or_runs_that_is_said(folder, tmp_path, monkeypatch):
    folder.append_metrics({"epoch": 1})
    with pytest.raises(RunError, match="no folder at"):
        list(events.follow(tmp_path / "nowhere"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install .bayesarch\[tensorboard\]"):
        list(events.follow(tmp_path))
