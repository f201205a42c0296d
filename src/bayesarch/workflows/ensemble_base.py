"""The search that an ensemble is of, made ready again: restarts from what it found, a shared supernet of its space."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch

from bayesarch.data import Examples, Partition, splits_on
from bayesarch.engine import Observer
from bayesarch.ensembles import SharedSupernet, restart
from bayesarch.errors import ConfigError
from bayesarch.functional import Streams
from bayesarch.methods import BPNASConfig
from bayesarch.nets import Supernet
from bayesarch.posteriors import MeanField
from bayesarch.runs import RunFolder, write_atomically
from bayesarch.spaces import Architecture
from bayesarch.workflows.config import merge
from bayesarch.workflows.ensemble_settings import EnsembleSettings
from bayesarch.workflows.job import Job, prepare
from bayesarch.workflows.run import Run

__all__ = ["BaseSearch", "refuse_no_search"]


def refuse_no_search(base: Run, source: str) -> None:
    """Refuse a run that a source cannot go back to.

    Raises:
        ConfigError: if it is no single search over operations.
    """
    if base.config.get("repeats", 1) > 1 or any(choice.alike for choice in base.architecture.space.choices):
        raise ConfigError(
            f"--from {source} goes back to a single search over operations, and {base.path} is none; "
            "take --from samples, top or deepens"
        )


class BaseSearch:
    """What sources of candidates need of the search.

    Args:
        base: the search.
        folder: of the ensemble; what takes time is kept there.
        settings: of the ensemble.
        examples: of both.
        partition: of the ensemble.
        half: indices into the selection split of what may choose.
        device: where networks live.
        on_stage: told what is being done.
        should_stop: asked now and then.
    """

    def __init__(  # noqa: PLR0913 - it stands between a search and an ensemble
        self,
        base: Run,
        folder: RunFolder,
        settings: EnsembleSettings,
        examples: Examples,
        partition: Partition,
        half: np.ndarray,
        device: torch.device,
        *,
        on_stage: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.base, self.folder, self.settings, self.examples = base, folder, settings, examples
        self.partition, self.half, self.device = partition, half, device
        self.on_stage, self.should_stop = on_stage, should_stop

    @property
    def start(self) -> Architecture:
        """The architecture that sources start from: the found one, unless another is asked for."""
        given = self.settings.ensemble.architecture
        return self.base.architecture if given is None else Architecture.parse(given, self.base.architecture.space)

    def _search_job(self) -> Job:
        """Return the base run's search made ready again.

        Raises:
            ConfigError: if it was no single search over operations.
        """
        refuse_no_search(self.base, self.settings.ensemble.candidates)
        return prepare(self.examples, config=self.base.config)

    def reopened(self, position: int, seed: int) -> Architecture:
        """Return where a restart with one choice open ends; kept in the folder, one by one."""
        place = self.folder.path / "restarts" / f"{position:03d}-{seed}"
        found = self.start
        name = f"restarts/{place.name}.json"
        if self.folder.has(name):
            return Architecture.parse(self.folder.read_json(name)["architecture"], found.space)
        job = self._search_job()
        self.on_stage(f"restart with {found.space.choices[position].name} open")
        bpnas = job.settings.method_config
        arch = restart(
            _found_supernet(self.base, job),
            found,
            position,
            data=job.splits,
            setting=job.setting(job.supernet(Streams(seed, self.device))),
            config=job.settings.engine.model_copy(update={"epochs": self.settings.ensemble.restart_epochs}),
            method=bpnas if isinstance(bpnas, BPNASConfig) else BPNASConfig(),
            seed=seed,
            checkpoint=place.with_suffix(".safetensors"),
            observer=Observer(should_stop=self.should_stop),
        )
        self.folder.write_json(name, {"architecture": arch.to_json(), "choice": found.space.choices[position].name})
        return arch

    def shared(self) -> SharedSupernet:
        """Return the shared supernet with its posterior, trained where it is not there yet."""
        place, job = self.folder.path / "shared", self._search_job()
        own_engine = {"epochs": self.settings.ensemble.shared_epochs, "closing_epochs": 0, "recalibrate": False}
        config = merge(
            self.base.config,
            {
                "seed": self.settings.seed,
                "method": {"name": "nesbs"},
                "engine": own_engine | {"max_minutes": None},
            },
        )
        config["method"] = {"name": "nesbs"}  # and nothing of the search's own method
        own = prepare(self.examples, config=config)
        weights = place / "supernet.safetensors"
        posterior = place / "posterior.json"
        if not posterior.exists():
            self.on_stage("training a shared supernet")
            shared = RunFolder(place)

            def keep(record: dict[str, Any]) -> None:
                state = {name: tensor.cpu().contiguous() for name, tensor in engine.net.state_dict().items()}
                write_atomically(weights, safetensors.torch.save(state))

            engine = own.engine(shared, Observer(on_round=keep, should_stop=self.should_stop))
            if engine.checkpoint.exists():
                engine.restore()
            engine.run()
            found = own.settings.method.posterior(engine.state)
            shared.write_json("posterior.json", found.to_json())
        net = job.supernet(Streams(self.settings.seed, self.device))
        net.load_state_dict(safetensors.torch.load_file(weights))
        table = MeanField.from_json(json.loads(posterior.read_text()), net.space)
        indices = {**self.partition.indices, "selection": self.partition.indices["selection"][self.half]}
        half = Partition(indices, self.partition.given)
        chosen = splits_on(self.examples, half, ("selection",), config=self.settings.data, device=self.device)
        return SharedSupernet(net, table, chosen["selection"], batch_size=4 * job.settings.engine.batch_size)


def _found_supernet(base: Run, job: Job) -> Supernet:
    """Return the supernet that a search ended with, cut to what was found, with its weights."""
    net = job.supernet(Streams(0, job.device))
    live = torch.zeros(net.space.n_options, dtype=torch.bool)
    live[list(base.architecture.columns)] = True
    net.prune(live)
    tensors = safetensors.torch.load_file(base.folder.path / "checkpoints" / "last.safetensors")
    net.load_state_dict({k.removeprefix("net/"): v for k, v in tensors.items() if k.startswith("net/")})
    made: Supernet = net
    return made
