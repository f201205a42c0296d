"""Every error a user can meet, in one tree.

    BayesarchError
    ├── ConfigError        a field, a flag or a file of settings is wrong      (ValueError)
    ├── SpaceError         an architecture or a choice does not fit its space  (ValueError)
    ├── DataError          examples that cannot be used as they are            (ValueError)
    ├── RunError           a run folder that cannot be read, written or resumed
    │   └── CheckpointError    its checkpoint is damaged or of another version
    ├── DeviceError        the device asked for is not there
    └── NumericalError     a loss or a belief stopped being a finite number    (ArithmeticError)

A message says what was expected, what came, and the next thing to try, in one line where it can.
`assert` is for us, never for users.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "BayesarchError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "NumericalError",
    "RunError",
    "SpaceError",
    "nearest",
]


class BayesarchError(Exception):
    """Base of all errors that bayesarch raises on purpose."""


class ConfigError(BayesarchError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class SpaceError(BayesarchError, ValueError):
    """An architecture, a choice or an option does not belong to its space."""


class DataError(BayesarchError, ValueError):
    """The examples given cannot be used as they are."""


class RunError(BayesarchError):
    """A run folder cannot be created, read or resumed."""


class CheckpointError(RunError):
    """A checkpoint is damaged, incomplete or of another version."""


class DeviceError(BayesarchError):
    """The device asked for is not available."""


class NumericalError(BayesarchError, ArithmeticError):
    """A loss, gradient or belief is no longer finite."""


def nearest(name: str, legal: Iterable[str]) -> str:
    """Return the end of a message: the nearest legal name where there is one, and all legal names.

    Args:
        name: what the user wrote.
        legal: what could have been written.
    """
    options = sorted(legal)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}(legal: {', '.join(options)})"
