"""Which members train as one, and that the choice is no clock's."""

from pathlib import Path

import torch

from bayesarch.engine import TrainConfig
from bayesarch.nets import architecture_cost
from bayesarch.spaces import NB201, Architecture
from bayesarch.workflows import stacks

CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
SAME = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
OTHER = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|skip_connect~2|"


def test_the_same_architectures_form_groups():
    paths = [Path(name) for name in "abcd"]
    asked = dict(zip(paths, (Architecture.parse(text, NB201) for text in (CELL, OTHER, SAME, CELL)), strict=True))
    assert stacks.groups(asked) == [[paths[0], paths[2], paths[3]]]


def pays(*, batch_size=4, parallel=1, device="cpu", arch=CELL, space=NB201, **recipe):
    return stacks.stacking_pays(
        Architecture.parse(arch, space), sizes=space.sizes(channels=2, cells=1), input_shape=(1, 8, 8), classes=3,
        config=TrainConfig(batch_size=batch_size, **recipe), device=torch.device(device), parallel=parallel,
    )  # fmt: skip


def test_small_networks_are_stacked_where_processes_would_not_run_side_by_side():
    assert pays()
    assert not pays(parallel=2)
    assert pays(parallel=2, device="meta")  # any accelerator


def test_the_size_of_a_step_decides_and_no_clock(monkeypatch):
    macs = architecture_cost(
        Architecture.parse(CELL, NB201), sizes=NB201.sizes(channels=2, cells=1), input_shape=(1, 8, 8), classes=3
    ).macs
    monkeypatch.setattr(stacks, "SMALL_STEP", 64 * macs)
    assert pays(batch_size=64)
    assert not pays(batch_size=65)


def test_what_draws_inside_is_not_stacked():
    assert not pays(drop_path=0.2)
    assert not pays(graphs=True)  # each has a program of its own
