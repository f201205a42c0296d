"""Settings of a compression: which network, how it is made smaller, what the result has to keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import Field

from bayesarch.config import Config, check, raise_all
from bayesarch.data import DataConfig
from bayesarch.engine import (
    RULES,
    ShrinkConfig,
    TrainConfig,
)
from bayesarch.errors import nearest
from bayesarch.workflows.config import checked_seed

__all__ = [
    "LEAST_EPOCHS",
    "LEAST_STEPS",
    "RECIPE",
    "CompressConfig",
    "CompressLimits",
    "CompressSettings",
    "settle_compression",
]

SECTIONS = ("seed", "device", "compress", "limits", "data", "train")
RECIPE = {"batch_size": 128, "lr": 0.05, "weight_decay": 1e-4, "clip": 5.0}
"""Training between two cuts, unless it is said. Without clipping LeNet-5 on MNIST is not a number, or dead."""
LEAST_EPOCHS, LEAST_STEPS = 4, 300
"""Its length, unless it is said: so many epochs, or so many steps where the examples are few."""


class CompressConfig(ShrinkConfig):
    """Which network, how it is made smaller, how it is trained before and after."""

    module: str | None = None
    """FILE.py:NAME, or a network known here: lenet-300-100, lenet-500-300, lenet-5, resnet18, vgg16, mobilenet; null: a
    module given in Python."""
    weights: str | None = None
    """Its weights, a .safetensors or .pt file; null: it is trained first."""
    dense_epochs: int = Field(default=20, ge=1)
    """Epochs of that training."""
    dense_lr: float = Field(default=0.05, gt=0)
    """First learning rate of that training."""
    finetune_epochs: int = Field(default=10, ge=1)
    """Epochs that the chosen network is trained without a penalty at the end."""


class CompressLimits(Config):
    """What the result has to keep."""

    max_params: int | None = Field(default=None, ge=1)
    """Most parameters."""
    max_macs: int | None = Field(default=None, ge=1)
    """Most MACs for one image."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """Most milliseconds for one image, measured here."""
    max_drop: float | None = Field(default=None, ge=0, lt=1)
    """Most accuracy on the selection split that may be lost; without any limit 0.01."""

    @property
    def counted(self) -> bool:
        """Return whether there are limits on cost, all of it counted and not measured."""
        return self.max_latency_ms is None and not (self.max_params is None and self.max_macs is None)

    def kept(self, costs: Mapping[str, Any]) -> bool:
        """Return whether params, macs and latency_ms are within those limits that there are."""
        bounds = {"params": self.max_params, "macs": self.max_macs, "latency_ms": self.max_latency_ms}
        return all(bound is None or costs[key] <= bound for key, bound in bounds.items())


@dataclass(frozen=True)
class CompressSettings:
    """Everything a compression depends on, checked."""

    seed: int
    device: str
    compress: CompressConfig
    limits: CompressLimits
    data: DataConfig
    train: TrainConfig

    def record(self) -> dict[str, Any]:
        """Return the settings in force as config.yaml holds them."""
        record = {"seed": self.seed, "device": self.device}
        for name in ("compress", "limits", "data", "train"):
            record[name] = getattr(self, name).model_dump(mode="json")
        plain: dict[str, Any] = yaml.safe_load(yaml.safe_dump(record))
        return plain

    @property
    def drop(self) -> float | None:
        """Return how much accuracy may be lost; None: as much as the other limits ask for."""
        limits = self.limits
        if limits.max_drop is None and not any(limits.model_dump().values()):
            return 0.01
        return limits.max_drop

    @property
    def sized(self) -> bool:
        """Return whether there is a limit on cost."""
        limits = self.limits
        return any(v is not None for v in (limits.max_params, limits.max_macs, limits.max_latency_ms))


def settle_compression(record: Mapping[str, Any]) -> CompressSettings:
    """Return checked settings.

    Raises:
        ConfigError: listing every wrong field by dotted path.
    """
    faults = [f"{key}: unknown section, {nearest(str(key), SECTIONS)}" for key in record if key not in SECTIONS]
    seed = checked_seed(record, faults)
    config = check(CompressConfig, record.get("compress") or {}, path="compress", faults=faults)
    limits = check(CompressLimits, record.get("limits") or {}, path="limits", faults=faults)
    data = check(DataConfig, record.get("data") or {}, path="data", faults=faults)
    train = check(TrainConfig, record.get("train") or {}, path="train", faults=faults)
    if config is not None and config.method not in RULES:
        faults.append(f"compress.method: no rule {config.method!r}, {nearest(config.method, RULES)}")
    elif config is not None and config.also and not RULES[config.method].groups:
        faults.append(f"compress.also: {config.method} judges units alone; leave it empty or take method=evidence")
    elif config is not None and RULES[config.method].by_training and not (config.penalty and config.penalty_share):
        faults.append(
            f"compress.method: {config.method} finds nobody to cut unless training pays; leave compress.penalty and "
            "compress.penalty_share as they are"
        )
    if train is not None and (train.auxiliary > 0 or train.drop_path > 0 or train.ema is not None):
        faults.append("train: auxiliary heads, dropped paths and moving averages are for `train`; leave them off here")
    if train is not None and train.graphs:
        faults.append("train.graphs: what cuts a network decides on the host as it trains; leave it off here")
    raise_all(faults)
    assert config is not None
    assert limits is not None
    assert data is not None
    assert train is not None
    if config.price == "auto":
        per_image = limits.max_macs is not None or limits.max_latency_ms is not None
        config = config.model_copy(update={"price": "macs" if per_image else "weights"})
    return CompressSettings(seed, str(record.get("device", "auto")), config, limits, data, train)
