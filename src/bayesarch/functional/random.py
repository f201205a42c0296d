"""Randomness: streams by name, a Dirichlet draw that takes a generator, and the one place that seeds globally.

A stream is derived from (seed, name), so adding a consumer moves no other. torch's own Dirichlet takes no generator;
`dirichlet_rsample` calls the same sampler and the same implicit gradient that `torch.distributions.Dirichlet` does,
and a test pins that the two agree bit for bit.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Streams", "dirichlet_rsample", "seeded"]


class Streams:
    """Random generators by name, all derived from one seed; made when first asked for.

    Args:
        seed: the run's seed.
        device: where the draws are made. Streams that permute examples, start weights or seed a network's own
            noise always live on the CPU: there is no waiting for a card.
    """

    HOST = ("data", "init", "reopen", "noise")

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        self._made: dict[str, torch.Generator] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        """Return the stream called `name`; `data/weights` and the like are streams of their own."""
        if name not in self._made:
            host = name.split("/")[0] in self.HOST
            generator = torch.Generator(device="cpu" if host else self.device)
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            self._made[name] = generator
        return self._made[name]

    def on_device(self) -> list[torch.Generator]:
        """Return the streams made so far that do not live on the CPU."""
        return [generator for generator in self._made.values() if generator.device.type != "cpu"]

    def host_state(self) -> dict[str, list[int]]:
        """Return the position of every stream made so far that lives on the CPU, to be compared."""
        made = self._made.items()
        return {name: stream.get_state().tolist() for name, stream in made if stream.device.type == "cpu"}

    def state(self) -> dict[str, Tensor]:
        """Return the position of every stream made so far, as byte tensors."""
        return {name: generator.get_state().clone() for name, generator in self._made.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put every stream of `state` back where it was."""
        for name, position in state.items():
            self[name].set_state(position.cpu())


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Run a block in which torch's global generator is seeded from `generator`, and put it back afterwards.

    For constructors that take no generator (`torch.nn` initialises weights from the global one). The only place in
    the library that seeds globally.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        if generator.device.type == "cpu":
            # `torch.manual_seed` would write the stack down for a card that may yet be found, which takes longer
            torch.default_generator.manual_seed(seed)  # noqa: TID251 - this is that place
        else:
            torch.manual_seed(seed)  # noqa: TID251 - so is this
        yield


class _Dirichlet(torch.autograd.Function):
    """Sample of a Dirichlet with its implicit reparameterisation gradient (Figurnov et al., 2018)."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, generator: torch.Generator | None) -> Tensor:
        theta = torch._sample_dirichlet(alpha, generator)
        ctx.save_for_backward(theta, alpha)
        return theta

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        theta, alpha = ctx.saved_tensors
        total = alpha.sum(-1, keepdim=True).expand_as(alpha)
        slope = torch._dirichlet_grad(theta, alpha, total)
        return slope * (grad[0] - (theta * grad[0]).sum(-1, keepdim=True)), None


def dirichlet_rsample(alpha: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Return draws from Dirichlet(alpha), differentiable in `alpha`.

    Args:
        alpha: concentrations > 0, shape (..., K), K options; float32 or float64 (torch has no bf16 kernel).
        generator: the stream to draw from, on `alpha`'s device.

    Returns:
        Shape (..., K); rows lie on the simplex.
    """
    drawn: Tensor = _Dirichlet.apply(alpha, generator)
    return drawn
