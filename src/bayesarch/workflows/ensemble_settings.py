"""Settings of an ensemble: which search it is of, what is trained, who is chosen, how they are mixed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from bayesarch.config import Config, check, raise_all
from bayesarch.data import DataConfig
from bayesarch.engine import TrainConfig
from bayesarch.ensembles import SOURCES, Scaling, Selection
from bayesarch.errors import nearest
from bayesarch.workflows.config import checked_seed

__all__ = ["RECIPE", "SECTIONS", "EnsembleConfig", "EnsembleSettings", "settle_ensemble"]

SECTIONS = ("seed", "device", "ensemble", "space", "data", "train")


RECIPE = {"epochs": 25, "lr": 0.1, "nesterov": True, "weight_decay": 5e-4}
"""NAS-Bench-201's recipe for members, but for its 200 epochs and batches of 256."""


class EnsembleConfig(Config):
    """What is trained, who is chosen, how they are mixed."""

    run: str
    """The search that candidates come from."""
    candidates: str = "bpnas"
    """Where they come from: bpnas, samples, top, neighbours, deepens, nes-rs, nes-re, nesbs-mc, nesbs-svgd."""
    members: int = Field(default=3, ge=1)
    """Members of the ensemble."""
    pool: int = Field(default=12, ge=2)
    """Candidates trained by sources that choose among many (nes-rs, nes-re)."""
    architecture: str | None = None
    """The architecture that bpnas, neighbours and deepens start from; null: what the search found."""
    selection: Selection | None = None
    """How members are chosen: forward (greedy), forward-replace (members may count twice), top, all; null: the
    source's own way."""
    weights: Literal["uniform", "stacked"] = "uniform"
    """Of the members' probabilities: equal, or of the lowest loss on the selection half."""
    scaling: Scaling = "joint"
    """Temperatures fitted on the calibration half: none, single (each member's own) or joint (the mixture's)."""
    restart_epochs: int = Field(default=40, ge=1)
    """Cap on a restart's search epochs (bpnas)."""
    shared_epochs: int = Field(default=40, ge=2)
    """Epochs of the shared supernet, the last half for its posterior (nesbs)."""
    stack: Literal["auto", "always", "never"] = "auto"
    """Whether members of one architecture train as one network with grouped convolutions: auto: on a GPU, and on CPUs
    where a few steps timed beforehand say that it is faster than processes side by side."""
    reference: bool = True
    """Whether a plain ResNet that costs as many MACs as all members together is trained beside them (images only)."""


@dataclass(frozen=True)
class EnsembleSettings:
    """Everything an ensemble depends on, checked."""

    seed: int
    device: str
    ensemble: EnsembleConfig
    data: DataConfig
    train: TrainConfig
    space: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the settings in force as config.yaml holds them."""
        return {
            "seed": self.seed,
            "device": self.device,
            "ensemble": self.ensemble.model_dump(mode="json"),
            "space": self.space,
            "data": self.data.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
        }


def settle_ensemble(record: Mapping[str, Any]) -> EnsembleSettings:
    """Return checked settings.

    Raises:
        ConfigError: listing every wrong field by dotted path.
    """
    faults = [f"{key}: unknown section, {nearest(str(key), SECTIONS)}" for key in record if key not in SECTIONS]
    seed = checked_seed(record, faults)
    config = check(EnsembleConfig, record.get("ensemble") or {}, path="ensemble", faults=faults)
    if config is not None and config.candidates not in SOURCES:
        faults.append(f"ensemble.candidates: no source {config.candidates!r}, {nearest(config.candidates, SOURCES)}")
    data = check(DataConfig, record.get("data") or {}, path="data", faults=faults)
    train = check(TrainConfig, record.get("train") or {}, path="train", faults=faults)
    raise_all(faults)
    assert config is not None
    assert data is not None
    assert train is not None
    return EnsembleSettings(seed, str(record.get("device", "auto")), config, data, train, dict(record["space"]))
