"""BayesNAS, whole searches: that the prior does the work, in all its spaces, asked for by name."""

import pytest
import torch

from bayesarch.engine import Observer
from bayesarch.errors import ConfigError
from bayesarch.methods import METHODS
from bayesarch.spaces import BAYESNAS_CELL, DARTS
from bayesarch.testing import tricky_space
from helpers import make_engine, posterior_of

NOTHING = {"penalty_gates": 1e-12, "penalty_operations": 1e-12}


def test_the_prior_does_the_work(tmp_path):
    """Some options go by the evidence under the prior, none where the prior is flat."""
    sizes = {"space": "nb201", "source": "digits", "sizes": {"channels": 8, "cells": 1}, "limit": 600}
    shares = {}
    for name, settings in {"prior": {}, "flat": NOTHING}.items():
        engine = make_engine(
            tmp_path / name,
            method="bayesnas",
            epochs=20,
            closing_epochs=0,
            settings={"rounds": 1, "penalty_share": 0.5, **settings},
            **sizes,
        ).run()
        summary = engine.method.summary(engine.state)
        shares[name] = summary["removed_by_criterion"] / summary["options"]
        assert bool(summary["warnings"]) == (name == "flat")
        widths = [d for row in summary["switches"].values() for d in row["sd"]]
        assert min(widths) > 0
        assert (max(widths) < 0.05) == (name == "flat"), "a flat prior is an infinite number of examples"
    assert 0.2 <= shares["prior"] <= 0.8
    assert shares["flat"] == 0


@pytest.mark.parametrize(
    ("space", "sizes"),
    [
        (BAYESNAS_CELL, {"channels": 4, "layers": 3}),
        pytest.param(DARTS, {"channels": 4, "layers": 3}, marks=pytest.mark.long),
        pytest.param("tree-cell", {"channels": 4, "alpha": 6}, marks=pytest.mark.long),
    ],
    ids=["bayesnas-cell", "darts", "tree-cell"],
)
def test_ends_in_a_connected_architecture_in_its_other_spaces(tmp_path, space, sizes):
    name = space if isinstance(space, str) else space.name
    records = []
    engine = make_engine(
        tmp_path, method="bayesnas", space=name, source="digits", sizes=sizes, limit=300, epochs=12, closing_epochs=1,
        settings={"warmup_steps": 2, "round_steps": 2, "rounds": 2, "curvature_batches": 1},
        observer=Observer(on_round=records.append),
    ).run()  # fmt: skip
    posterior = posterior_of(engine)
    arch = posterior.mode()
    assert engine.method.space.connected(arch.picks)
    assert arch.picks == engine.method.space.cascade(arch.picks)
    assert records[-1]["operations"] == sum(map(len, arch.picks)) < sum(len(c.real) for c in arch.space.choices)
    images = next(engine.data["selection"].in_order(16)).images
    engine.net.eval()
    assert torch.allclose(
        engine.net.inherit(arch)(images), engine.net(images, engine.method.gates(engine.state)), atol=1e-4
    )


def test_it_can_be_asked_for_by_name_and_says_what_is_wrong():
    assert METHODS["bayesnas"].make(tricky_space(), None).name == "bayesnas"
    from bayesarch.workflows.config import settle

    method = {"name": "bayesnas"}
    assert settle({"method": method}).engine.closing_epochs == 10
    assert settle({"method": method, "engine": {"closing_epochs": 3}}).engine.closing_epochs == 3

    with pytest.raises(ConfigError, match=r"method\.rule"):
        settle({"method": {"name": "bayesnas", "rule": "vote"}})
