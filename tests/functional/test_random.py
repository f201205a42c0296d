import pytest
import torch
from torch.distributions import Dirichlet

from bayesarch.functional import Streams, dirichlet_rsample, seeded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5,), (6, 5), (3, 2, 2)])
def test_dirichlet_equals_torch_bit_for_bit(dtype, shape, generator):
    alpha = (torch.rand(shape, generator=generator, dtype=dtype) * 3 + 0.05).requires_grad_()
    weight = torch.rand(shape, generator=generator, dtype=dtype)
    ours = dirichlet_rsample(alpha, generator=torch.Generator().manual_seed(7))
    (our_grad,) = torch.autograd.grad((ours * weight).sum(), alpha)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(7)
        theirs = Dirichlet(alpha).rsample()
    (their_grad,) = torch.autograd.grad((theirs * weight).sum(), alpha)
    assert torch.equal(ours, theirs)
    assert torch.equal(our_grad, their_grad)


def test_dirichlet_gradient_is_that_of_the_mean(generator):
    """d E[theta_0] / d alpha in closed form, from 40,000 pathwise gradients, within five standard errors."""
    alpha = torch.tensor([0.7, 1.3, 2.0], dtype=torch.float64)
    leaf = alpha.expand(40_000, 3).clone().requires_grad_()
    draws = dirichlet_rsample(leaf, generator=generator)
    (grad,) = torch.autograd.grad(draws[:, 0].sum(), leaf)
    total = alpha.sum()
    exact = torch.stack([(total - alpha[0]) / total**2, -alpha[0] / total**2, -alpha[0] / total**2])
    error = grad.std(0) / len(grad) ** 0.5
    assert bool(((grad.mean(0) - exact).abs() < 5 * error).all())


def test_streams_do_not_move_one_another():
    alone, together = Streams(3), Streams(3)
    torch.rand(10, generator=together["gates"])
    assert torch.equal(torch.rand(5, generator=alone["data"]), torch.rand(5, generator=together["data"]))
    assert not torch.equal(torch.rand(5, generator=alone["gates"]), torch.rand(5, generator=alone["init"]))
    assert not torch.equal(torch.rand(5, generator=Streams(4)["data"]), torch.rand(5, generator=Streams(3)["data"]))


def test_streams_go_back_to_a_saved_place():
    streams = Streams(0)
    torch.rand(3, generator=streams["gates"])
    saved = streams.state()
    following = torch.rand(4, generator=streams["gates"])
    again = Streams(0)
    again.restore(saved)
    assert torch.equal(torch.rand(4, generator=again["gates"]), following)


def test_seeded_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    with seeded(torch.Generator().manual_seed(1)):
        one = torch.rand(3)
    with seeded(torch.Generator().manual_seed(1)):
        two = torch.rand(3)
    assert torch.equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), before)
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(1)))
    assert torch.equal(one, torch.rand(3, generator=torch.Generator().manual_seed(seed)))
