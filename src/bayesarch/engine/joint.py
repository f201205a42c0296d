"""One search on several processes: every batch is shared out, and every process does the same with the whole result.

A process takes its part of the images through the network; logits are gathered, so that a method sees those of the
whole batch; gradients of gates and weights are summed, and norms take the moments of all parts. Methods know nothing of
it, and every process holds the same beliefs, weights and architecture, those of one process up to rounding.

Started by `torchrun --nproc-per-node N -m bayesarch search ...`; see docs/decisions/0022-joint-processes.md for why
this is not `DistributedDataParallel`.
"""

import atexit
import os
from collections.abc import Mapping
from contextlib import nullcontext
from types import MethodType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bayesarch.errors import DeviceError, NumericalError
from bayesarch.functional.moments import joint_moments, norm_input_gradient, norm_sums
from bayesarch.nets import Supernet

__all__ = ["World"]

T = TypeVar("T")


class World:
    """The processes that work on one search.

    Args:
        rank: this one, from 0; the first writes the run folder.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def join(cls, device: torch.device) -> Self:
        """Return the processes that `torchrun` started, this one among them; a world of one without it.

        Raises:
            DeviceError: if torch was built without what processes talk by.
        """
        if cls.size_here() == 1:
            return cls()
        if not dist.is_available():
            raise DeviceError("this torch was built without torch.distributed; start one process, without torchrun")
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    @staticmethod
    def size_here() -> int:
        """Return how many processes `torchrun` started, before they have met."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @staticmethod
    def rank_here() -> int:
        """Return which of them this is."""
        return int(os.environ.get("RANK", "0"))

    @property
    def leads(self) -> bool:
        """Whether this process writes, and its word goes where only one can know, such as the time."""
        return self.rank == 0

    def told(self, value: T) -> T:
        """Return what the first process has for `value`."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def check_same(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Make sure that all processes hold the same.

        Raises:
            NumericalError: naming what differs.
        """
        if self.size == 1:
            return
        for key, tensor in tensors.items():
            mine = tensor.detach().to("cpu", torch.float64).flatten()
            first = mine.clone()
            dist.broadcast(first, src=0)
            differ = torch.tensor([0.0 if torch.equal(first, mine) else 1.0])
            dist.all_reduce(differ)
            if differ.item():
                raise NumericalError(
                    f"{name}: processes no longer agree on {key}. Are they machines of different kinds, or is the data "
                    "not the same for all? bayesarch resume on one process goes on from the last checkpoint"
                )

    def share(self, net: Supernet) -> None:
        """Let the network's forward passes be shared out from now on; nothing to do in a world of one."""
        if self.size > 1:
            net.forward = _SharedForward(self, net)  # type: ignore[method-assign]

    def sizes(self, n: int) -> list[int]:
        """Return how many of n examples each process takes; they differ by one at most."""
        whole, rest = divmod(n, self.size)
        return [whole + (rank < rest) for rank in range(self.size)]

    def bounds(self, n: int) -> tuple[int, int]:
        """Return where this process's part of n examples begins and ends."""
        sizes = self.sizes(n)
        return sum(sizes[: self.rank]), sum(sizes[: self.rank + 1])

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """Return everybody's tensor, of one shape, by rank."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts


class _SharedForward:
    """`forward(images, gates, active)` of a supernet on this process's part of the images, with everybody's logits."""

    def __init__(self, world: World, net: Supernet) -> None:
        self.world, self.inner = world, _Inner(net)

    def __call__(self, images: Tensor, gates: Tensor | None = None, active: frozenset[int] | None = None) -> Tensor:
        net, world, n = self.inner.net, self.world, len(images)
        if gates is None or n < world.size:  # too few to share: everybody takes all of them
            return self.inner(images, gates, active)
        start, end = world.bounds(n)
        parameters: dict[str, Tensor] = dict(self.inner.named_parameters())
        if torch.is_grad_enabled():
            parameters = dict(zip(parameters, _summed(*parameters.values()), strict=True))
            (gates,) = _summed(gates) if gates.requires_grad else (gates,)
        mine = gates[start:end] if gates.shape[0] == n else gates
        images_seen, macs_spent = net.images_seen, net.macs_spent
        with _JointNorms(world, n) if net.training else nullcontext():
            logits = torch.func.functional_call(self.inner, parameters, (images[start:end], mine, active))
        net.images_seen = images_seen + n  # of all processes
        net.macs_spent = macs_spent + (net.macs_spent - macs_spent) // (end - start) * n
        gathered: Tensor = _Gathered.apply(logits, world, n)
        return gathered

    def __deepcopy__(self, memo: dict[int, Any]) -> "_SharedForward":
        raise TypeError("a network that is shared by processes is not copied; build it anew")


class _Inner(nn.Module):
    """A supernet with the forward pass of its class, whatever stands in for it on the instance."""

    def __init__(self, net: Supernet) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Any) -> Tensor:
        """Return the network's own logits."""
        logits: Tensor = MethodType(type(self.net).forward, self.net)(*inputs)
        return logits


class _Summed(torch.autograd.Function):
    """Identity whose gradients are summed over processes, all in one exchange."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            return gradients
        flat = torch.cat([gradient.reshape(-1) for gradient in present])
        dist.all_reduce(flat)
        pieces = iter(flat.split([gradient.numel() for gradient in present]))
        return tuple(None if g is None else torch.empty_like(g).copy_(next(pieces).view(g.shape)) for g in gradients)


def _summed(*tensors: Tensor) -> tuple[Tensor, ...]:
    out: tuple[Tensor, ...] = _Summed.apply(*tensors)
    return out


class _Gathered(torch.autograd.Function):
    """Everybody's rows in order; the gradient of this process's rows comes back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World, n: int) -> Tensor:
        ctx.bounds = world.bounds(n)
        padded = rows.new_zeros(max(world.sizes(n)), *rows.shape[1:])  # what is gathered has one shape
        padded[: len(rows)] = rows
        return torch.cat([part[:size] for part, size in zip(world.gathered(padded), world.sizes(n), strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        start, end = ctx.bounds
        return gradient[start:end], None, None


class _JointNorms(TorchFunctionMode):
    """Inside, `F.batch_norm` in training takes the moments of all processes' examples, whatever network calls it."""

    def __init__(self, world: World, n: int) -> None:
        super().__init__()
        self.world, self.examples = world, world.sizes(n)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        return self._norm(*args, **(kwargs or {}))

    def _norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        with torch.no_grad():
            mean, variance = self._moments(input)
            n = input.numel() // input.shape[1] * sum(self.examples) // self.examples[self.world.rank]
            if running_mean is not None and running_var is not None:
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((variance * (n / max(n - 1, 1))).to(running_var), momentum)
        out: Tensor = _JointNorm.apply(input, weight, bias, mean, variance, n, eps)
        return out

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance per channel over all processes, each of shape (C,)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(wide, [d for d in range(x.ndim) if d != 1], correction=0)
        each = torch.stack(self.world.gathered(torch.stack([mean, var])))
        return joint_moments(each[:, 0], each[:, 1], each.new_tensor(self.examples))


class _JointNorm(torch.autograd.Function):
    """Normalise by given joint moments; the gradient is that of batch normalisation over all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, n: int, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.n = n
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        wide, dy = x.to(mean.dtype), gradient.to(mean.dtype)
        mine = norm_sums(wide, dy, mean, scale)
        joint = torch.stack(mine)
        dist.all_reduce(joint)
        dx = norm_input_gradient(wide, dy, mean, scale, weight, (joint[0], joint[1]), ctx.n).to(x.dtype)
        # these are this process's share; parameters and gates are summed where they enter the network
        of_weight = mine[1].to(weight.dtype) if weight is not None and ctx.needs_input_grad[1] else None
        of_bias = mine[0].to(gradient.dtype) if ctx.needs_input_grad[2] else None
        return dx, of_weight, of_bias, None, None, None, None
