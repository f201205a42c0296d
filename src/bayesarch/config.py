"""The base of all settings: frozen, closed, documented field by field.

One subclass per part, in the file of the part it configures, is the only home of that part's defaults; configuration
files, flags and the Python API share it. `check` collects every wrong field of a section instead of stopping at the
first.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bayesarch.errors import ConfigError, nearest

__all__ = ["Config", "check"]


class Config(BaseModel):
    """A frozen set of named settings; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


C = TypeVar("C", bound=Config)


def check(kind: type[C], values: Mapping[str, Any], *, path: str, faults: list[str]) -> C | None:
    """Return `values` as a `kind`, or None after adding one line per wrong field to `faults`.

    Args:
        kind: the section's class.
        values: what the user gave.
        path: dotted prefix of the section, such as `method`.
        faults: the list that lines are added to, such as `method.detla: unknown field, did you mean 'delta'?`.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        for fault in error.errors():
            field = ".".join(str(part) for part in fault["loc"])
            if fault["type"] == "extra_forbidden":
                faults.append(f"{path}.{field}: unknown field, {nearest(field, kind.model_fields)}")
            else:
                faults.append(f"{path}.{field}: {fault['msg']} (got {fault['input']!r})")
    return None


def raise_all(faults: list[str]) -> None:
    """Raise one `ConfigError` that lists all faults, if there are any.

    Raises:
        ConfigError: when `faults` is not empty.
    """
    if len(faults) == 1:
        raise ConfigError(faults[0])
    if faults:
        raise ConfigError(f"{len(faults)} settings are wrong:\n  " + "\n  ".join(faults))
