"""What tests of several rooms need: a small search, examples of a run's split, jobs without processes of their own."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bayesarch.cli import app
from bayesarch.data import SEARCH_SPLITS, DataConfig, load, split, splits_on
from bayesarch.engine import Engine, EngineConfig, Observer, Setting
from bayesarch.functional import Streams
from bayesarch.methods import METHODS
from bayesarch.nets import Supernet
from bayesarch.spaces import NO_LIMITS, SPACES
from bayesarch.workflows import processes

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="kernels of our own want a C compiler")


def images(*shape, dtype=torch.float64, seed=0, mean=0.0, spread=1.0):
    """Return features of shape (B, C, H, W), channels last, the same for a seed in every type."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread + mean
    return x.to(dtype=dtype, memory_format=torch.channels_last)


@contextmanager
def on_threads(count):
    """Torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_engine(  # noqa: PLR0913 - a test names what it needs
    folder: Path, *, method="bpnas", space="toy", source="planted", seed=0, observer=None, sizes=None, limit=None,
    settings=None, limits=NO_LIMITS, world=None, device="cpu", **engine
) -> Engine:  # fmt: skip
    """Return an engine at its beginning."""
    data_config, device = DataConfig(source=source, limit=limit), torch.device(device)
    examples = load(data_config)
    partition = split(examples, data_config)
    config = EngineConfig(**engine)
    streams = Streams(seed, device)
    made = METHODS[method].make(SPACES[space], METHODS[method].config(**(settings or {})))
    net = Supernet(
        made.space,
        input_shape=examples.input_shape,
        classes=len(examples.classes),
        sizes=sizes,
        generator=streams["init"],
    ).to(device=device, memory_format=torch.channels_last)
    steps = partition.sizes["weights"] // config.batch_size
    setting = Setting(net.n_copies, partition.sizes, config.batch_size, steps, device, limits, classes=net.classes)
    return Engine(
        method=made,
        net=net,
        state=made.init(setting, streams=streams),
        data=splits_on(examples, partition, SEARCH_SPLITS, config=data_config, device=device),
        config=config,
        streams=streams,
        checkpoint=folder / "last.safetensors",
        observer=observer or Observer(),
        world=world,
    )


def several(space):
    """Return a space in which any number of an edge's operations may stay."""
    choices = tuple(replace(choice, pick="any") for choice in space.choices)
    return replace(space, name=f"{space.name}-any", choices=choices, format_fn=None, parse_fn=None, canonical_fn=None)


def posterior_of(engine: Engine):
    return engine.method.posterior(engine.state)


def split_of(run, name):
    """Return images and labels of one of the splits that a run trained and was scored on."""
    config = DataConfig(**run.config["data"])
    examples = load(config)
    images, labels = split(examples, config).for_training().take(examples, name)
    return images, labels


class Here:
    """A job that is done when it is asked for, in this process; jobs in their own have tests of their own."""

    def __init__(self, path, command, environment):
        done = CliRunner().invoke(app, command[3:])
        with (path / "process.txt").open("a") as log:
            log.write(str(done.exception or ""))
        self.returncode = 0 if done.exception is None else 2

    def poll(self):
        return self.returncode


@contextmanager
def jobs_here():
    """Bring repeats and members to their end in this process, one after another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_local", Here)
        yield
