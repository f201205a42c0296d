"""Trainings side by side end as they would alone, and as an unbroken run after any break."""

import copy
import sys

import pytest
import torch
from test_trainer import trainer_of

from bayesarch.engine import Interrupted, Observer, Together
from bayesarch.errors import ConfigError
from bayesarch.nets.kernels import grouped_conv
from helpers import needs_cc


def some(folder, *, observers=(None, None, None), **settings):
    return [trainer_of(folder / str(i), seed=i, observer=o, **settings) for i, o in enumerate(observers)]


def state(trainers):
    return [copy.deepcopy(trainer.net.state_dict()) for trainer in trainers]


@pytest.mark.parametrize(
    ("settings", "fused"),
    [({}, False), ({"ema": 0.9, "label_smoothing": 0.1, "clip": 0.5}, False), pytest.param({}, True, marks=needs_cc)],
    ids=["plain", "all", "fused"],
)
def test_every_network_ends_as_it_would_alone(tmp_path, settings, fused, monkeypatch):
    asked = []
    monkeypatch.setattr(
        sys.modules["bayesarch.nets.convolving"],
        "grouped_conv",
        lambda *a, **more: asked.append(1) or grouped_conv(*a, **more),
    )
    alone = some(tmp_path / "a", epochs=1, lr=0.01, **settings)
    starts = state(alone)
    for trainer in alone:
        trainer.run()
    records = [[], [], []]
    joint = some(
        tmp_path / "b", epochs=1, lr=0.01, observers=[Observer(on_round=r.append) for r in records], fused=fused,
        **settings,
    )  # fmt: skip
    Together(joint).run()
    assert (len(asked) > 0) == fused
    for mine, theirs, start in zip(state(joint), state(alone), starts, strict=True):
        for name in mine:
            moved = (theirs[name].double() - start[name].double()).abs().max()
            off = (mine[name].double() - theirs[name].double()).abs().max()
            assert off <= 2e-3 * moved + 1e-6, name
    for record, other in zip(records, alone, strict=True):
        assert record[0]["selection_loss"] == pytest.approx(other.selection().loss, rel=1e-3)
        assert len(record) == 1


def test_a_break_changes_nothing(tmp_path):
    whole = some(tmp_path / "a")
    Together(whole).run()
    calls = []

    def stop():
        calls.append(1)
        return len(calls) == 7

    broken = some(tmp_path / "b", observers=[None, Observer(should_stop=stop), None])
    with pytest.raises(Interrupted):
        Together(broken).run()
    assert len({(trainer.place.epoch, trainer.place.step) for trainer in broken}) == 1
    resumed = [trainer.restore() for trainer in some(tmp_path / "b")]
    assert resumed[0].place.step > 0
    Together(resumed).run()
    for mine, theirs in zip(state(resumed), state(whole), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_those_behind_catch_up_inside_the_same_stack(tmp_path):
    """As after a kill between two checkpoints: one is an epoch ahead, one a step, one has none at all."""
    whole = some(tmp_path / "a")
    Together(whole).run()

    class Killed(Exception):
        pass

    def stopper(trainers, place):
        def stop():
            return (trainers[0].place.epoch, trainers[0].place.step) == place

        return stop

    for only, place in ((0, (2, 1)), (1, (1, 3))):  # what each of two had saved when it ended
        trainers = []
        observers = [Observer(should_stop=lambda t=trainers, p=place: stopper(t, p)())] + [None] * 2
        trainers += some(tmp_path / f"c{only}", observers=observers)
        with pytest.raises(Interrupted):
            Together(trainers).run()
        target = tmp_path / "b" / str(only)
        target.mkdir(parents=True)
        (tmp_path / f"c{only}" / str(only) / "last.safetensors").rename(target / "last.safetensors")
    resumed = some(tmp_path / "b")
    for trainer in resumed[:2]:
        trainer.restore()
    assert [(t.place.epoch, t.place.step) for t in resumed] == [(2, 1), (1, 3), (0, 0)]
    Together(resumed).run()
    for mine, theirs in zip(state(resumed), state(whole), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_time_is_counted_once(tmp_path):
    trainers = some(tmp_path)
    Together(trainers).run()
    seconds = [trainer.place.seconds for trainer in trainers]
    assert max(seconds) < 1.5 * min(seconds)
    assert trainers[0].time_share == pytest.approx(1 / 3)


def test_what_cannot_be_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="one recipe"):
        Together([trainer_of(tmp_path / "a"), trainer_of(tmp_path / "b", lr=0.3)])
    with pytest.raises(ConfigError, match="dropped paths"):
        Together([trainer_of(tmp_path / "c", drop_path=0.2), trainer_of(tmp_path / "d", drop_path=0.2)])
