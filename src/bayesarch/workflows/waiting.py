"""How threads wait for one another (decision 9). No torch.

OpenMP reads this once, when torch loads. Threads that sleep at once lose up to a quarter of a supernet's step to waking
up; threads that spin as long as they like cost most as soon as another process wants a core. Ours look for work for
about as long as there is between two of torch's operations, and sleep then.
"""

import os
from collections.abc import MutableMapping

__all__ = ["SPINS", "WAITING", "wait_shortly"]

POLICY, COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
SPINS = 3000
"""Times that GNU's OpenMP, which torch has on Linux, looks before it sleeps."""
WAITING = (POLICY, COUNT)
"""Variables that say how threads wait."""


def wait_shortly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Say so in an environment, unless its user has said how threads wait."""
    if not any(name in environment for name in WAITING):
        environment.update({POLICY: "PASSIVE", COUNT: str(SPINS)})
