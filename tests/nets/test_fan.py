"""One tensor to all that take it, and their gradients back in one pass, against torch's own sums."""

import pytest
import torch

from bayesarch.nets import kernels
from bayesarch.nets.kernels import fan
from helpers import images, needs_cc, on_threads

pytestmark = needs_cc


def passed(way, x, risen, plain, slopes):
    """Return what all take, and the gradient of x where each has a gradient; None: it is not used."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    first, second = way(x, risen, plain)
    used = [(out, slope) for out, slope in zip([*first, *second], slopes, strict=True) if slope is not None]
    return [out.detach() for out, _ in used], torch.autograd.grad([o for o, _ in used], x, [s for _, s in used])[0]


def naive(x, risen, plain):
    return [x.relu() for _ in range(risen)], [x * 1 for _ in range(plain)]


@pytest.mark.parametrize("shape", [(3, 5, 4, 3), (2, 8, 4, 4), (300, 16, 2, 3), (1, 27, 3, 3)])
@pytest.mark.parametrize(("risen", "plain"), [(1, 0), (0, 2), (2, 2), (5, 1), (3, 6)])
def test_gradients_are_sums(shape, risen, plain):
    slopes = [images(*shape, seed=k + 1) for k in range(risen + plain)]
    mine, theirs = (passed(way, images(*shape), risen, plain, slopes) for way in (fan, naive))
    for a, b in zip(mine[0], theirs[0], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unused", [[0], [3], [0, 1], [2, 3]])
def test_some_may_be_left_unused(unused):
    slopes = [None if k in unused else images(2, 4, 3, 4, seed=k + 1) for k in range(4)]
    mine, theirs = (passed(way, images(2, 4, 3, 4), 2, 2, slopes)[1] for way in (fan, naive))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("lie", ["wide", "other order", "expanded"])
def test_gradients_lie_as_they_like(lie, place):
    """A part of wider rows, channels first, or one value everywhere; beside gradients that are as they should be."""
    slope = {
        "wide": images(2, 24, 4, 4, seed=5)[:, 8:16],
        "other order": images(2, 8, 4, 4, seed=5).contiguous(),
        "expanded": torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64).expand(2, 8, 4, 4),
    }[lie]
    slopes = [slope if k == place else images(2, 8, 4, 4, seed=k + 6) for k in range(3)]
    mine, theirs = (passed(way, images(2, 8, 4, 4), 2, 1, slopes)[1] for way in (fan, naive))
    torch.testing.assert_close(mine, theirs)


def test_a_part_of_wider_features_is_taken_too():
    x, slopes = images(2, 12, 4, 4)[:, 2:10], [images(2, 8, 4, 4, seed=k) for k in (1, 2)]
    mine, theirs = (passed(way, x, 1, 1, slopes) for way in (fan, naive))
    assert torch.equal(mine[0][0], theirs[0][0])
    torch.testing.assert_close(mine[1], theirs[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_bf16_is_summed_in_float_and_rounded_once(threads):
    x = images(8, 16, 24, 24, dtype=torch.bfloat16)
    slopes = [images(8, 16, 24, 24, seed=k + 1).bfloat16() for k in range(5)]
    with on_threads(threads):
        _, mine = passed(fan, x, 3, 2, slopes)
    wide = [slope.float() for slope in slopes]
    first, second = (wide[0] + wide[1] + wide[2]) * (x.float() > 0), wide[3] + wide[4]
    assert mine.dtype == torch.bfloat16
    # the order of the sums in float moves a rounding now and then
    assert float(((first + second).bfloat16() != mine).float().mean()) < 1e-3


def test_what_is_no_number_is_not_hidden():
    x = images(1, 2, 2, 2)
    x[0, 0, 0, 0] = torch.nan
    slopes = [images(1, 2, 2, 2, seed=k) for k in (1, 2)]
    (out, _), slope = passed(fan, x, 2, 0, slopes)
    assert bool(out[0, 0, 0, 0].isnan())
    assert slope[0, 0, 0, 0] == slopes[0][0, 0, 0, 0] + slopes[1][0, 0, 0, 0], "as by torch.relu"


def test_one_that_takes_features_as_they_are_is_given_them():
    x = images(1, 2, 2, 2).requires_grad_()
    assert fan(x, 0, 1) == ([], [x])
    assert fan(x, 0, 0) == ([], [])


def test_a_second_derivative_is_refused():
    x = images(2, 3, 2, 2).requires_grad_()
    first, second = fan(x, 1, 1)
    (slope,) = torch.autograd.grad((first[0] * second[0]).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_gradients_that_there_are_are_taken_by_whole_blocks(monkeypatch):
    """By blocks where nothing lies between pixels; the result is the same as by channels (above)."""
    seen = []
    own = kernels.rows.kernel

    def watched(name, dtype):
        def fan_of(*given):
            seen.append((given[0], given[7]))
            return own(name, dtype)(*given)

        return fan_of if name == "fan" else own(name, dtype)

    monkeypatch.setattr(kernels.rows, "kernel", watched)
    slopes = [images(2, 8, 4, 4, seed=k) for k in (1, 2)]
    passed(fan, images(2, 8, 4, 4), 1, 1, slopes)
    passed(fan, images(2, 5, 3, 3), 1, 1, [images(2, 5, 3, 3), images(2, 5, 3, 3)])
    passed(fan, images(2, 8, 4, 4), 1, 1, [slopes[0], images(2, 24, 4, 4)[:, :8]])
    passed(fan, images(2, 8, 4, 4), 2, 2, [None, *slopes, None])
    assert seen == [(2, 16), (2, 5), (2, 8), (2, 16)]
