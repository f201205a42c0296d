"""Which members train as one, and that the choice is a measurement."""

from pathlib import Path

import pytest
import torch

from bayesarch.engine import TrainConfig
from bayesarch.spaces import NB201, Architecture
from bayesarch.workflows import stacks

CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
SAME = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
OTHER = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|skip_connect~2|"


def test_the_same_architectures_form_groups():
    paths = [Path(name) for name in "abcd"]
    asked = dict(zip(paths, (Architecture.parse(text, NB201) for text in (CELL, OTHER, SAME, CELL)), strict=True))
    assert stacks.groups(asked) == [[paths[0], paths[2], paths[3]]]


@pytest.mark.parametrize(
    ("alone", "together", "parallel", "of", "pays"),
    [(1.0, 1.3, 2, 3, True), (1.0, 1.9, 2, 3, False), (1.0, 1.9, 1, 3, True), (1.0, 0.95, 3, 3, False)],
)
def test_a_stack_must_beat_processes_side_by_side(monkeypatch, alone, together, parallel, of, pays):
    times = iter([alone, together])
    monkeypatch.setattr(stacks, "_timed", lambda work, threads: (work(), next(times))[1])
    said = stacks.stacking_pays(
        Architecture.parse(CELL, NB201), of=of, sizes=NB201.sizes(channels=2, cells=1), input_shape=(1, 8, 8),
        classes=3, config=TrainConfig(batch_size=4), device=torch.device("cpu"), parallel=parallel,
    )  # fmt: skip
    assert said is pays


def test_what_draws_inside_is_not_stacked(monkeypatch):
    monkeypatch.setattr(stacks, "_timed", lambda work, threads: pytest.fail("nothing is to be timed"))
    assert not stacks.stacking_pays(
        Architecture.parse(CELL, NB201), of=3, sizes=NB201.sizes(channels=2, cells=1), input_shape=(1, 8, 8),
        classes=3, config=TrainConfig(drop_path=0.2), device=torch.device("cpu"), parallel=1,
    )  # fmt: skip


def test_timing_leaves_the_number_of_threads_as_it_was():
    before, seen = torch.get_num_threads(), []
    assert stacks._timed(lambda: seen.append(torch.get_num_threads()), before + 1) >= 0
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
