"""What every method keeps. Small searches on made-up data; seconds on a CPU."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesarch.data import SEARCH_SPLITS, DataConfig, Examples, as_examples, split, splits_on
from bayesarch.engine import (
    Engine,
    EngineConfig,
    Method,
    Setting,
    found_by,
    load_checkpoint,
    pack,
    save_checkpoint,
    unpack,
)
from bayesarch.functional import Streams
from bayesarch.nets import Supernet
from bayesarch.posteriors import ArchitecturePosterior
from bayesarch.spaces import TOY, Choice, Space
from bayesarch.testing.posteriors import check_posterior

__all__ = ["check_method", "tricky_space"]


def tricky_space() -> Space:
    """Return a space in which one edge's options are all the same, one leads nowhere and one starts nowhere."""
    twins = ("skip", "skip_connect")
    edges = (("0", "1", twins), ("0", "dead", ("none", "skip", "product")), ("orphan", "2", ("none", "skip")))
    last = (("1", "2", ("none", "skip", "product")),)
    return Space(
        name="tricky",
        choices=tuple(
            Choice(
                name=f"{target}<-{source}",
                options=options,
                zero=options.index("none") if "none" in options else None,
                source=source,
                target=target,
            )
            for source, target, options in (*edges, *last)
        ),
        inputs=frozenset({"0"}),
        outputs=frozenset({"2"}),
        skeleton=TOY.skeleton,
        sizes=TOY.sizes,
    )


def check_method(make: Callable[[Space], Method[Any]], *, spaces: tuple[Space, ...] = (TOY,)) -> None:
    """Check a method: it ends, repeats itself, survives a round trip, prunes only, and gives a sound posterior.

    Args:
        make: space -> method.
        spaces: spaces to try beside the tricky one.

    Raises:
        AssertionError: saying what is broken.
    """
    for space in (*spaces, tricky_space()):
        first, posterior = _search(make(space), seed=0)
        assert first.place.stage == "done", "a search must end"
        assert torch.equal(first.net.live, first.state.live), "the network must be what the method says is live"
        for position, choice in enumerate(space.choices):
            kept = sum(bool(first.state.live[g]) for g in space.columns(position))
            assert kept > 0 or choice.pick == "any", "a choice that takes one option must keep one"
        assert posterior.space == space, "the posterior is over the method's space"
        assert not posterior.calibrated, "a single run's numbers are not calibrated"
        check_posterior(posterior)
        assert all(first.state.live[g] for g in found_by(first.method, first.state).columns), (
            "what was found must still exist"
        )
        second, again = _search(make(space), seed=0)
        assert again.to_json() == posterior.to_json(), "the same seed must give the same posterior"
        _check_equal(first.state, second.state)
        _check_round_trip(first)


def _data() -> Examples:
    rng = np.random.default_rng(0)
    features = rng.choice([-1.0, 1.0], size=(200, 6)).astype(np.float32)
    return as_examples(features[:, None, None, :], (features[:, 0] > 0).astype(int), layout="chw")


def _search(method: Method[Any], *, seed: int) -> tuple[Engine, ArchitecturePosterior]:
    """Return a short search's engine and posterior; state is checked at every round."""
    config, device = EngineConfig(epochs=12, closing_epochs=1, batch_size=16), torch.device("cpu")
    examples, data_config, streams = _data(), DataConfig(), Streams(seed, device)
    partition = split(examples, data_config)
    net = Supernet(method.space, input_shape=examples.input_shape, classes=2, generator=streams["init"])
    setting = Setting(net.n_copies, partition.sizes, 16, partition.sizes["weights"] // 16, device)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            method=method,
            net=net,
            state=method.init(setting, streams=streams),
            data=splits_on(examples, partition, SEARCH_SPLITS, config=data_config, device=device),
            config=config,
            streams=streams,
            checkpoint=Path(folder) / "last.safetensors",
        )
        gates = method.gates(engine.state)
        assert gates.shape[0] == 1, "expected gates are shared by examples"
        assert gates.shape[2] == method.space.n_options, "expected gates have a column per option"
        engine.run()
    return engine, method.posterior(engine.state)


def _check_equal(a: Any, b: Any) -> None:
    (tensors, values), (others, other_values) = pack(a), pack(b)
    assert values == other_values, "the same seed must give the same state"
    assert all(torch.equal(tensors[name], others[name]) for name in tensors), "the same seed, the same beliefs"


def _check_round_trip(engine: Engine) -> None:
    """Check that a state survives the checkpoint file."""
    tensors, values = pack(engine.state)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_checkpoint(path, tensors, {"values": values})
        loaded, header = load_checkpoint(path)
    again = unpack(engine.method.state_type, loaded, header["values"], device="cpu")
    _check_equal(unpack(engine.method.state_type, *pack(engine.state), device="cpu"), again)
    assert engine.method.posterior(again).to_json() == engine.method.posterior(engine.state).to_json(), (
        "the posterior must survive a round trip of the state"
    )
