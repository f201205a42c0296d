"""The positive part of normalised features by a kernel of ours, against torch's two layers."""

import pytest
import torch
from torch.nn import functional as F

from bayesarch.nets import kernels
from bayesarch.nets import options as room
from bayesarch.nets.kernels import Norm, moments_of, norm_relu
from bayesarch.nets.options import Options
from bayesarch.nets.pieces import mixed
from bayesarch.spaces import SPACES
from helpers import images, needs_cc, on_threads

pytestmark = needs_cc


def naive(x, mean, var):
    return F.relu(F.batch_norm(x, mean, var, None, None, True, 0.3, 1e-5))


def ours(x, mean, var):
    return norm_relu(x, moments_of(x, Norm(mean, var, 0.3, 1e-5)))


def passed(way, x, slope):
    """Return output, gradient, and running moments."""
    x, wide = x.detach().clone().requires_grad_(), torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, var = torch.full((x.shape[1],), 0.5, dtype=wide), torch.full((x.shape[1],), 2.0, dtype=wide)
    out = way(x, mean, var)
    return [out.detach(), torch.autograd.grad(out, x, slope)[0], mean, var]


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (2, 16, 3, 3), (3, 17, 5, 1), (1, 1, 1, 7), (40, 37, 6, 5)])
def test_output_gradient_and_running_moments_are_those_of_torch(shape):
    x, slope = images(*shape, mean=0.7, spread=2), images(*shape, seed=1)
    for a, b in zip(passed(ours, x, slope), passed(naive, x, slope), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("lie", ["slice", "channels first"])
def test_features_and_gradients_lie_as_they_like(lie):
    wide, slopes = images(4, 12, 5, 3), images(4, 12, 5, 3, seed=1)
    x, slope = (wide[:, 3:8], slopes[:, 1:6]) if lie == "slice" else (wide.contiguous(), slopes.contiguous())
    x = x.detach().requires_grad_()
    found = []
    for way in (ours, naive):
        moments = torch.zeros(x.shape[1], dtype=torch.float64), torch.ones(x.shape[1], dtype=torch.float64)
        out = way(x, *moments)
        found.append((out, *torch.autograd.grad(out, x, slope)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gradients_are_those_of_small_differences():
    moments = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ours(x, *moments).sin(), images(3, 3, 2, 4).requires_grad_())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)], ids=["float", "bf16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_narrower_types_come_as_close_as_they_can(dtype, tolerance, threads):
    """Against torch in float64 on the same values; large enough for several threads."""
    x, slope = images(16, 27, 16, 15, mean=0.7, spread=2).to(dtype), images(16, 27, 16, 15, seed=3).to(dtype)
    with on_threads(threads):
        mine = passed(ours, x, slope)
    for a, b in zip(mine, passed(naive, x.double(), slope.double()), strict=True):
        assert float((a.double() - b).norm() / b.norm()) < tolerance
    assert mine[0].dtype == mine[1].dtype == dtype


def test_what_is_no_number_is_not_hidden():
    x = images(2, 2, 3, 3)
    x[1, 0, 2, 2] = torch.nan
    out = ours(x, torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert bool(out[:, 0].isnan().all())
    assert not bool(out[:, 1].isnan().any())


def test_a_second_derivative_is_refused():
    x = images(2, 3, 2, 2).requires_grad_()
    out = ours(x, torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("space", "kind", "option", "made"),
    [
        ("darts", "normal", "sep_conv_3x3", 0),
        ("bayesnas-cell", "normal", "sep3", 0),
        ("bayesnas-cell", "normal", "dil3", 1),
    ],
)
def test_norms_of_an_option_are_told_of_a_batch(space, kind, option, made, monkeypatch, generator):
    """What the first gives is made for dense convolutions alone; all else is part of separable ones."""
    found = SPACES[space]
    position, choice = next((p, c) for p, c in enumerate(found.choices) if c.cell == kind and option in c.options)
    column = found.columns(position)[choice.options.index(option)]
    options = Options(found, kind, 4, [column], stride_of=lambda node: 1, affine=False, norm_free=True)
    options.to(memory_format=torch.channels_last)
    seen = []
    monkeypatch.setattr(room, "norm_relu", lambda x, norm: seen.append(norm) or kernels.norm_relu(x, norm))
    h = torch.randn(3, 4, 6, 6, generator=generator)
    gates = torch.ones(1, found.n_options)
    ((target, part),) = options.parting(choice.source, h, gates, None)
    assert target == choice.target
    norms = [m for m in options.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(seen) == made
    if space == "bayesnas-cell":
        torch.testing.assert_close(norms[0].running_mean, 0.1 * h.mean((0, 2, 3)))
        torch.testing.assert_close(norms[0].running_var, 0.9 + 0.1 * h.var((0, 2, 3)))
    assert [int(norm.num_batches_tracked) for norm in norms] == [1] * (2 - made)
    twin = Options(found, kind, 4, [column], stride_of=lambda node: 1, affine=False, norm_free=True)
    twin.load_state_dict({k: v for k, v in options.state_dict().items() if "running" not in k}, strict=False)
    torch.testing.assert_close(
        kernels.sum_of([part]),
        mixed([piece for _, piece in twin.leaving(choice.source, h, gates, None)], h),
        rtol=1e-4,
        atol=1e-5,
    )
    for a, b in zip(norms, (m for m in twin.modules() if isinstance(m, torch.nn.BatchNorm2d)), strict=True):
        torch.testing.assert_close(a.running_var, b.running_var)
        torch.testing.assert_close(a.running_mean, b.running_mean)


@pytest.mark.parametrize("option", ["sep3", "dil3"])
def test_a_norm_with_a_scale_is_its_options_own(option, generator):
    """What options begin with alike is shared, and those do not."""
    found = SPACES["bayesnas-cell"]
    position, choice = next((p, c) for p, c in enumerate(found.choices) if c.cell == "normal")
    column = found.columns(position)[choice.options.index(option)]
    options = Options(found, "normal", 4, [column], stride_of=lambda node: 1, affine=True, norm_free=True).double()
    (module,) = options.modules_of.values()
    with torch.no_grad():
        module[0].weight.fill_(3.0)
        module[0].bias.fill_(-1.0)
    h = torch.randn(3, 4, 6, 6, generator=generator, dtype=torch.float64)
    gates = torch.full((1, found.n_options), 0.5, dtype=torch.float64)
    ((_, (out, gate)),) = options.leaving(choice.source, h, gates, None)
    torch.testing.assert_close(out * gate, 0.5 * module(h))
