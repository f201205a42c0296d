"""The settings of a run: file, flags and the Python API meet here, and every wrong field is reported at once.

seed: 0
repeats: 1                                  how many runs, each with its own seed and bootstrap
device: auto
space:  {name: nb201, channels: 16, ...}     the space's sizes
method: {name: bpnas, delta: 0.05, ...}      the method's settings
data:   {source: digits, ...}
engine: {epochs: 80, ...}
limits: {macs: 2000000, ...}                 what the found architecture must keep
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bayesarch.config import Config, check, raise_all
from bayesarch.data import DataConfig
from bayesarch.engine import EngineConfig, Method
from bayesarch.errors import ConfigError, nearest
from bayesarch.methods import METHODS
from bayesarch.spaces import SPACES, Space
from bayesarch.workflows.limits import LimitsConfig

__all__ = ["Settings", "checked_seed", "merge", "overrides", "read_config", "settle"]

SECTIONS = ("seed", "repeats", "device", "space", "method", "data", "engine", "limits")
FEW_EXAMPLES = 10_000
"""Below this many training examples a search uses the space's sizes for few examples unless told otherwise."""


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on, checked."""

    seed: int
    repeats: int
    device: str
    space: Space
    sizes: Config
    method: Method[Any]
    method_config: Config | None
    data: DataConfig
    engine: EngineConfig
    limits: LimitsConfig

    def record(self) -> dict[str, Any]:
        """Return the settings in force as config.yaml holds them."""
        method = {} if self.method_config is None else self.method_config.model_dump(mode="json")
        record = {
            "seed": self.seed,
            "repeats": self.repeats,
            "device": self.device,
            "space": {"name": self.space.name, **self.sizes.model_dump(mode="json")},
            "method": {"name": self.method.name, **method},
            "data": self.data.model_dump(mode="json"),
            "engine": self.engine.model_dump(mode="json"),
            "limits": self.limits.model_dump(mode="json"),
        }
        plain: dict[str, Any] = yaml.safe_load(yaml.safe_dump(record))
        return plain


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings of a YAML file.

    Raises:
        ConfigError: if it cannot be read or holds no settings.
    """
    try:
        record = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {str(error).replace(chr(10), ' ')}") from None
    if record is None:
        return {}
    if not isinstance(record, dict):
        raise ConfigError(f"{path} must hold settings such as 'seed: 0'; got {type(record).__name__}")
    return record


def overrides(pairs: Sequence[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `a.b=v` pairs (or a mapping of dotted names) as nested settings; values are read as YAML.

    Raises:
        ConfigError: if a pair has no `=` or no dotted name.
    """
    if pairs is None:
        return {}
    if isinstance(pairs, Mapping):
        items = list(pairs.items())
    else:
        bad = [pair for pair in pairs if "=" not in pair]
        if bad:
            raise ConfigError(f"--set takes section.field=value; got {', '.join(bad)}")
        items = [(key, yaml.safe_load(value)) for key, _, value in (pair.partition("=") for pair in pairs)]
    nested: dict[str, Any] = {}
    for name, value in items:
        *sections, field = name.strip().split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return nested


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings, later layers over earlier ones; a bare name of a section means its `name`."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key in ("space", "method") and isinstance(value, str):
                value = {"name": value}
            if key == "data" and isinstance(value, str):
                value = {"source": value}
            before = merged.get(key)
            if isinstance(value, Mapping) and isinstance(before, dict):
                # another name starts from its own defaults
                renamed = "name" in value and value["name"] != before.get("name", value["name"])
                merged[key] = dict(value) if renamed else {**before, **value}
            else:
                merged[key] = dict(value) if isinstance(value, Mapping) else value
    return merged


def settle(record: Mapping[str, Any], *, space: Space | None = None, method: Method[Any] | None = None) -> Settings:
    """Return checked settings.

    Args:
        record: nested settings; what is missing takes its default.
        space: an object to use in place of a named space.
        method: an object to use in place of a named method.

    Raises:
        ConfigError: listing every wrong field by dotted path.
    """
    faults = [f"{key}: unknown section, {nearest(str(key), SECTIONS)}" for key in record if key not in SECTIONS]
    seed, device = checked_seed(record, faults), record.get("device", "auto")
    repeats = record.get("repeats", 1)
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        faults.append(f"repeats: must be a whole number >= 1 (got {repeats!r})")
    sections = {key: _section(record, key, faults) for key in ("space", "method", "data", "engine", "limits")}
    space = space or _named(SPACES, sections["space"].pop("name", "nb201"), "space", faults)
    sections["space"].pop("name", None)
    method_name = sections["method"].pop("name", "bpnas")
    entry = None if method is not None else _named(METHODS, method_name, "method", faults)
    for key, values in ({} if entry is None else entry.defaults).items():
        sections[key] = {**values, **sections[key]}
    sizes = None if space is None else check(space.sizes, sections["space"], path="space", faults=faults)
    method_config = None if entry is None else check(entry.config, sections["method"], path="method", faults=faults)
    data = check(DataConfig, sections["data"], path="data", faults=faults)
    engine = check(EngineConfig, sections["engine"], path="engine", faults=faults)
    limits = check(LimitsConfig, sections["limits"], path="limits", faults=faults)
    raise_all(faults)
    assert limits is not None
    assert space is not None
    assert sizes is not None
    assert data is not None
    assert engine is not None
    if method is None:
        assert entry is not None
        method = entry.make(space, method_config)
    return Settings(int(seed), int(repeats), str(device), space, sizes, method, method_config, data, engine, limits)


def _section(record: Mapping[str, Any], key: str, faults: list[str]) -> dict[str, Any]:
    value = record.get(key, {})
    if not isinstance(value, Mapping):
        faults.append(f"{key}: must be a section with fields (got {value!r})")
        return {}
    return dict(value)


def _named(table: Mapping[str, Any], name: Any, what: str, faults: list[str]) -> Any:
    if name not in table:
        faults.append(f"{what}.name: unknown {what} {name!r}, {nearest(str(name), table)}")
        return None
    return table[name]


def small_data_sizes(settings: Settings, n_examples: int, given: Mapping[str, Any]) -> Settings:
    """Return the settings with the space's sizes for few examples where examples are few.

    Only sizes that the user left out are touched; the effective value is saved with the run.
    """
    section = given.get("space", {})
    said = set(section) if isinstance(section, Mapping) else set()
    few = {k: v for k, v in getattr(settings.sizes, "few_examples", {}).items() if k not in said}
    if n_examples >= FEW_EXAMPLES or not few:
        return settings
    return replace(settings, sizes=settings.sizes.model_copy(update=few))


def checked_seed(record: Mapping[str, Any], faults: list[str]) -> int:
    """Return the seed of settings, 0 if none is given; what is wrong with it is added to `faults`."""
    seed = record.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        faults.append(f"seed: must be a whole number >= 0 (got {seed!r})")
        return 0
    return seed
