"""Training of plain networks: what each setting does, and that a broken training goes on to the bit."""

import math
import sys

import pytest
import torch
from torch.nn import functional as F

from bayesarch.data import SEARCH_SPLITS, DataConfig, load, split, splits_on
from bayesarch.engine import Interrupted, Observer, TrainConfig, Trainer
from bayesarch.errors import CheckpointError, NumericalError
from bayesarch.functional import Streams
from bayesarch.nets import build
from bayesarch.nets.kernels import filtered_conv
from bayesarch.spaces import NB201, Architecture
from captured import pretended_graphs
from helpers import needs_cc
from pretended import pretended_card

CELL = Architecture.parse(
    "|nor_conv_3x3~0|+|skip_connect~0|avg_pool_3x3~1|+|nor_conv_1x1~0|skip_connect~1|nor_conv_3x3~2|", NB201
)


def trainer_of(folder, *, observer=None, seed=0, device="cpu", channels=4, **settings):
    device = torch.device(device)
    config, streams = DataConfig(source="digits", limit=400), Streams(seed, device)
    examples = load(config)
    parts = splits_on(examples, split(examples, config), SEARCH_SPLITS, config=config, device=device)
    sizes = {"channels": channels, "cells": 1}
    net = build(CELL, input_shape=(1, 8, 8), classes=10, sizes=sizes, generator=streams["init"])
    return Trainer(
        net.to(device=device, memory_format=torch.channels_last), classes=10,
        training=parts["weights"], selection=parts["selection"],
        config=TrainConfig(**{"epochs": 3, "batch_size": 32, **settings}), streams=streams,
        checkpoint=folder / "last.safetensors", observer=observer,
    )  # fmt: skip


@needs_cc
@pytest.mark.parametrize("settings", [{}, {"auxiliary": 0.4, "drop_path": 0.3}], ids=["plain", "all"])
def test_by_kernels_it_is_the_same_training(settings, tmp_path, monkeypatch):
    """Of networks wide enough; the numbers are the same up to rounding, and not to the bit."""
    asked = []
    monkeypatch.setattr(
        sys.modules["bayesarch.nets.convolving"],
        "filtered_conv",
        lambda *words: asked.append(1) or filtered_conv(*words),
    )
    ends = []
    for fused in (False, True):
        trainer = trainer_of(
            tmp_path / str(fused), channels=16, epochs=1, lr=0.01, batch_size=64, fused=fused, **settings
        )
        trainer.run()
        ends.append({name: value.double() for name, value in trainer.net.state_dict().items()})
        assert (len(asked) > 0) == fused
    assert any(not torch.equal(mine, ends[0][name]) for name, mine in ends[1].items()), "not to the bit"
    for name, mine in ends[1].items():
        torch.testing.assert_close(mine, ends[0][name], rtol=1e-3, atol=1e-4, msg=name)


def test_it_learns(tmp_path):
    records = []
    trainer = trainer_of(tmp_path, epochs=20, lr=0.1, observer=Observer(on_round=records.append)).run()
    assert trainer.selection().accuracy > 0.8
    assert records[-1]["training_loss"] < 0.5 * records[0]["training_loss"]
    assert [record["epoch"] for record in records] == list(range(1, 21))


@pytest.mark.parametrize(
    "settings", [{}, {"ema": 0.9, "label_smoothing": 0.1, "auxiliary": 0.4, "drop_path": 0.3}], ids=["plain", "all"]
)
def test_resume_is_bit_for_bit(tmp_path, settings):
    whole = trainer_of(tmp_path / "a", **settings).run()
    calls = []

    def stop():
        calls.append(1)
        return len(calls) == 7  # in the second epoch

    broken = trainer_of(tmp_path / "b", observer=Observer(should_stop=stop), **settings)
    with pytest.raises(Interrupted):
        broken.run()
    assert 0 < broken.place.epoch < 3
    resumed = trainer_of(tmp_path / "b", **settings).restore().run()
    mine, theirs = whole.net.state_dict(), resumed.net.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert whole.selection() == resumed.selection()


def test_a_replayed_training_goes_back_to_its_checkpoint(tmp_path, monkeypatch):
    """The same object, after steps that were replayed: what a program holds has been put in another place."""
    calls, settings = [], {"graphs": True, "ema": 0.9}

    def stop():
        calls.append(1)
        return len(calls) == 7

    with pretended_card(monkeypatch) as marks, pretended_graphs(monkeypatch, marks) as graphs:
        whole = trainer_of(tmp_path / "a", device="cuda", **settings).run()
        broken = trainer_of(tmp_path / "b", device="cuda", observer=Observer(should_stop=stop), **settings)
        with pytest.raises(Interrupted):
            broken.run()
        assert sum(graph.replays for graph in graphs.made[1:]) >= 4
        broken.restore().run()
        mine, theirs = whole.net.state_dict(), broken.net.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_one_step_is_torchs_own(tmp_path):
    trainer = trainer_of(tmp_path, label_smoothing=0.1, lr=0.05, clip=0)
    batch = trainer.feeder.next()
    twin = build(CELL, input_shape=(1, 8, 8), classes=10, sizes={"channels": 4, "cells": 1})
    twin.load_state_dict(trainer.net.state_dict())
    sgd = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=3e-4)
    trainer.whole.train()
    twin.train()
    for _ in range(2):
        loss = F.cross_entropy(twin(batch.images), batch.labels, label_smoothing=0.1)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        assert float(trainer._step(batch)) == pytest.approx(float(loss.detach()), rel=1e-5)
    for mine, theirs in zip(trainer.net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_the_moving_average_is_what_is_kept(tmp_path):
    trainer = trainer_of(tmp_path, ema=0.75, epochs=1)
    before = trainer.net.head[-1].weight.detach().clone()
    seen = [before]
    trainer.whole.train()
    for _ in range(3):
        trainer._step(trainer.feeder.next())
        seen.append(trainer.net.head[-1].weight.detach().clone())
    expected = 0.75**3 * seen[0] + 0.25 * (0.75**2 * seen[1] + 0.75 * seen[2] + seen[3])
    assert torch.allclose(trainer.average["head.4.weight"], expected, atol=1e-6)
    raw = seen[3]
    trainer.selection()
    assert torch.equal(trainer.net.head[-1].weight, raw), "scoring puts the raw weights back"
    trainer._keep_average()
    assert torch.allclose(trainer.net.head[-1].weight, expected, atol=1e-6)


def test_the_auxiliary_head_sends_gradients_and_is_not_kept(tmp_path):
    trainer = trainer_of(tmp_path, auxiliary=0.4)
    trainer.whole.train()
    trainer._step(trainer.feeder.next())
    assert all(p.grad is not None for p in trainer.whole["auxiliary"].parameters())
    assert not any(name.startswith("auxiliary") for name in trainer.net.state_dict())


def test_schedules():
    for epoch, step, expected in ((0, 0, 0.1), (1, 0, 0.09), (2, 3, 0.081)):
        trainer = object.__new__(Trainer)
        trainer.config = TrainConfig(lr=0.1, schedule="exponential", lr_factor=0.9)
        trainer.place = type("Place", (), {"epoch": epoch, "step": step})()
        assert trainer._lr() == pytest.approx(expected)


def test_cosine_ends_at_the_last_rate(tmp_path):
    trainer = trainer_of(tmp_path, lr=0.1, lr_min=0.01)
    assert trainer._lr() == pytest.approx(0.1)
    trainer.place.epoch = 3
    assert trainer._lr() == pytest.approx(0.01)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    trainer = trainer_of(tmp_path)
    with torch.no_grad():
        trainer.net.head[-1].weight.fill_(math.inf)
    with pytest.raises(NumericalError, match=r"train\.lr"):
        trainer.run()


def test_another_kind_of_checkpoint_is_refused(tmp_path):
    from helpers import make_engine

    make_engine(tmp_path, epochs=1).save()
    with pytest.raises(CheckpointError, match="no checkpoint of a training"):
        trainer_of(tmp_path).restore()
