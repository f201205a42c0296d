"""What `tests/engine/test_joint.py` compares: the same passes and searches, by one process or by each of several.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python tests/joint_worker.py FOLDER
"""

import contextlib
import io
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bayesarch import cli
from bayesarch.engine import Interrupted, Observer, World, pack
from bayesarch.errors import ConfigError
from bayesarch.functional import Streams, seeded
from bayesarch.nets import Supernet
from bayesarch.nets.gated import supernet_from
from bayesarch.spaces import SPACES
from helpers import make_engine

SMALL = {"channels": 4, "cells": 1}
COMMON = [
    "--data", "digits", "--method", "drnas", "--limit", "240", "--set", "space.channels=4", "--set", "space.cells=1",
    "--set", "engine.epochs=2", "--set", "engine.closing_epochs=1",
]  # fmt: skip


def passes(name: str, net, world: World, *, n=7, copies=1, each=False, active=None, training=True) -> dict[str, Tensor]:
    """Return what one pass forward and back leaves, with a penalty on weights and gates beside the network."""
    draws = torch.Generator().manual_seed(1)
    net = net.double().train(training)
    world.share(net)
    images = torch.randn(n, *net.input_shape, generator=draws, dtype=torch.float64)
    gates = torch.rand(n if each else 1, copies, net.space.n_options, generator=draws, dtype=torch.float64) + 0.5
    gates.requires_grad_()
    logits = net(images, gates, active)
    loss = (logits * torch.randn(logits.shape, generator=draws, dtype=torch.float64)).square().mean()
    (alone,) = torch.autograd.grad(loss, gates, retain_graph=True)
    penalty = sum(p.square().sum() for p in net.parameters()) + gates.square().sum()
    (loss + 0.01 * penalty).backward()
    found = {"logits": logits, "gates": gates.grad, "alone": alone, "macs": torch.tensor([net.macs_spent])}
    found |= {f"weight/{key}": p.grad for key, p in net.named_parameters() if p.grad is not None}
    found |= {f"buffer/{key}": value for key, value in net.named_buffers()}
    return {f"{name}/{key}": value.detach().double().contiguous() for key, value in found.items()}


def supernet(space: str, input_shape=(1, 8, 8), partial=1, **sizes):
    generator = torch.Generator().manual_seed(0)
    net = Supernet(
        SPACES[space], input_shape=input_shape, classes=3, sizes={"channels": 4, **sizes}, generator=generator
    )
    if partial > 1:
        net.resize(partial, generator=generator)
    return net


def own_network():
    """Return a network with affine norms in one and in two dimensions."""
    with seeded(torch.Generator().manual_seed(2)):
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
        )  # fmt: skip


def all_passes(world: World) -> dict[str, Tensor]:
    nb201 = frozenset(range(0, 30, 2))
    own = supernet_from(own_network(), input_shape=(1, 8, 8), classes=3)
    return {
        **passes("shared", supernet("nb201", cells=1), world),
        **passes("each", supernet("nb201", cells=1), world, each=True),
        **passes("active", supernet("nb201", cells=1), world, active=nb201),
        **passes("partial", supernet("nb201", cells=1, partial=2), world),
        **passes("still", supernet("nb201", cells=1), world, training=False, each=True),
        **passes("few", supernet("nb201", cells=1), world, n=1, training=False),
        **passes("copies", supernet("darts", layers=3), world, copies=3),
        **passes("own", own, world, each=True),
    }


def searches(folder: Path, world: World) -> dict[str, Tensor]:
    """Return the beliefs that a few steps of searches end with."""
    found = {}
    common = {"space": "nb201", "source": "digits", "sizes": SMALL, "limit": 240, "world": world}
    for method, settings in {
        "bpnas": {"reopen_steps": 0},
        "darts-2nd": {},
        "bayesnas": {"warmup_steps": 2, "round_steps": 2, "rounds": 1},
    }.items():
        engine = make_engine(folder / method, method=method, settings=settings, epochs=2, closing_epochs=0, **common)
        tensors, _ = pack(engine.run().state)
        score = engine.selection()
        found |= {f"{method}/{key}": value.double().contiguous() for key, value in tensors.items()}
        found[f"{method}/selection"] = torch.tensor([score.loss, score.accuracy], dtype=torch.float64)
        found[f"{method}/work"] = torch.tensor([engine.place.images, engine.place.macs], dtype=torch.float64)
    return found


def stopped(folder: Path, world: World) -> int:
    """Return at which step a search stops that only the first process is asked to stop."""
    seen = []
    stop = Observer(on_step=lambda place: seen.append(place.steps), should_stop=lambda: world.leads and len(seen) == 2)
    try:
        make_engine(folder / f"stop{world.rank}", epochs=1, world=world, observer=stop).run()
    except Interrupted:
        return seen[-1]
    return -1


def refused(folder: Path, world: World) -> str:
    """Return what is said of ways to hold less that a shared batch cannot be computed by."""
    said = []
    for way in ({"recompute": True}, {"parts": 2}):
        try:
            make_engine(folder / "way", epochs=1, world=world, **way)
        except ConfigError as error:
            said.append(str(error))
    return " ".join(said)


def diverged(world: World) -> str:
    """Return what is said of processes that no longer agree."""
    try:
        world.check_same("search round 1", {"a": torch.tensor([1.0 + (world.rank == 1)])})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def commanded(folder: Path, *arguments: str) -> str:
    """Return what the command line prints, refusals in one line among it."""
    sys.argv = ["bayesarch", *arguments]
    shown, before, errors = io.StringIO(), sys.stdout, io.StringIO()
    sys.stdout = shown
    try:
        with contextlib.redirect_stderr(errors):
            cli.main()
    except SystemExit as left:
        if left.code:
            return f"left with {left.code}: {errors.getvalue()}"
    finally:
        sys.stdout = before
    return shown.getvalue()


def main(folder: Path) -> None:
    """Write what this process found to FOLDER/rank<r>.safetensors."""

    torch.set_num_threads(1)
    world = World.join(Streams(0).device)
    found = {**all_passes(world), **searches(folder, world)}
    record = {"stopped": str(stopped(folder, world)), "diverged": diverged(world), "told": world.told(str(world.rank))}
    record["saved"] = str((folder / f"stop{world.rank}" / "last.safetensors").exists())
    record["ways"] = refused(folder, world)
    record["search"] = commanded(folder, "search", *COMMON, "--out", str(folder / "run"))
    record["resume"] = commanded(folder, "resume", str(folder / "broken"))
    record["refused"] = commanded(folder, "train", str(folder / "run"))
    save_file(found, folder / f"rank{world.rank}.safetensors", metadata=record)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
