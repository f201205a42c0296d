"""Convolutions between two nodes as one, against the options one by one, in float64."""

import pytest
import torch
from torch.nn import functional as F

from bayesarch.functional import seeded
from bayesarch.nets.cells import MixedCell
from bayesarch.spaces import SPACES
from helpers import images


def cell_of(space):
    """A cell whose running moments are those of no batch."""
    with seeded(torch.Generator().manual_seed(0)):
        cell = MixedCell(SPACES[space], 4).double().eval()
        for name, moved in cell.named_buffers():
            if "running" in name:
                moved.copy_(torch.rand_like(moved) + 0.3)
    return cell


@pytest.fixture
def convolutions(monkeypatch):
    """Shapes of the kernels of all convolutions."""
    found, conv2d = [], F.conv2d
    monkeypatch.setattr(
        F, "conv2d", lambda x, w, *rest, **named: found.append(tuple(w.shape)) or conv2d(x, w, *rest, **named)
    )
    return found


def given(space, shape=(3, 4, 6, 7)):
    gates = torch.rand(1, SPACES[space].n_options, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images(*shape, mean=0.3), gates


@pytest.mark.parametrize("active", [None, range(0, 30, 2), [3, 28], [2, 12, 22], [0, 1, 4], []])
def test_outputs_are_those_of_the_options(active):
    cell, (x, gates) = cell_of("nb201"), given("nb201")
    active = None if active is None else frozenset(active)
    expected = cell(x, gates.clone().requires_grad_(), active).detach()
    with torch.no_grad():
        torch.testing.assert_close(cell(x, gates, active), expected, rtol=1e-11, atol=1e-11)


def test_kernels_of_one_axis_too():
    cell, (x, gates) = cell_of("nb201-series"), given("nb201-series", (3, 4, 1, 9))
    expected = cell(x, gates.clone().requires_grad_()).detach()
    with torch.no_grad():
        torch.testing.assert_close(cell(x, gates), expected, rtol=1e-11, atol=1e-11)


def test_all_that_goes_to_a_node_is_one_convolution(convolutions):
    """Three edges leave the first node, two the second, one the third: as many kernels side by side, of 3 x 3."""
    cell, (x, gates) = cell_of("nb201"), given("nb201")
    with torch.no_grad():
        cell(x, gates)
    assert convolutions == [(12, 4, 3, 3), (8, 4, 3, 3), (4, 4, 3, 3)]


@pytest.mark.parametrize("left", [2, 3])
def test_kernels_of_one_size_are_not_made_larger(left, convolutions):
    """Option 2 of an edge is of 1 x 1, option 3 of 3 x 3."""
    cell, (x, gates) = cell_of("nb201"), given("nb201")
    cell.prune(torch.arange(30) % 5 == left)
    with torch.no_grad():
        out = cell(x, gates)
    side = {2: 1, 3: 3}[left]
    assert [shape[2:] for shape in convolutions] == [(side, side)] * 3
    torch.testing.assert_close(out, cell(x, gates.clone().requires_grad_()).detach(), rtol=1e-11, atol=1e-11)


def test_with_channels_that_go_past():
    cell, (x, gates) = cell_of("nb201"), given("nb201", (3, 4, 5, 5))
    cell.resize(2, torch.Generator().manual_seed(0))
    cell.double().eval()
    expected = cell(x, gates.clone().requires_grad_()).detach()
    with torch.no_grad():
        torch.testing.assert_close(cell(x, gates), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("why", ["a batch has its own moments", "gates of each example", "somebody wants a gradient"])
def test_where_it_cannot_be_done_it_is_not(why, convolutions):
    cell, (x, gates) = cell_of("nb201"), given("nb201")
    cell.train(why == "a batch has its own moments")
    with torch.set_grad_enabled(why == "somebody wants a gradient"):
        out = cell(x, gates.expand(3, -1) if why == "gates of each example" else gates)
    assert out.shape == x.shape
    assert sorted(shape[2] for shape in convolutions) == [1, 1, 1, 3, 3, 3]
