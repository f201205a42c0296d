"""Runs on a Ray cluster: each a task that starts the same command as here, in a folder that its machine sees too."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bayesarch.engine import SHARED_THREADS
from bayesarch.errors import ConfigError
from bayesarch.workflows.waiting import WAITING

__all__ = ["RayJob", "RayLauncher"]

CARRIED = ("OMP_NUM_THREADS", *WAITING, "GLIBC_TUNABLES", SHARED_THREADS)
"""What of our environment goes along."""


def _work(folder: str, command: list[str], environment: dict[str, str]) -> int:
    """Run the command with the machine's own Python, and return how it ended."""
    with (Path(folder) / "process.txt").open("ab") as log:
        done = subprocess.run(
            [sys.executable, *command[1:]],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=log,
            check=False,
        )
    return done.returncode


class RayJob:
    """A task under way; says what `subprocess.Popen` says of a process."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return how it ended, or None."""
        if self.returncode is None and self.ray.wait([self.reference], timeout=0)[0]:
            self.wait()
        return self.returncode

    def terminate(self) -> None:
        """End it; its run is gone on with from the last checkpoint."""
        self.ray.cancel(self.reference, force=True)

    def wait(self) -> int:
        """Wait until it has ended."""
        try:
            self.returncode = int(self.ray.get(self.reference))
        except self.ray.exceptions.RayError:  # cancelled, or its machine is gone
            self.returncode = 1
        return self.returncode


class RayLauncher:
    """Starts runs on a cluster, one core each.

    Args:
        address: of the cluster; `local`: one on this machine, made for it.

    Raises:
        ConfigError: if Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise ConfigError('--ray needs Ray: pip install "bayesarch[ray]"') from None
        self.ray: Any = ray
        if not self.ray.is_initialized():
            try:
                self.ray.init(address=None if address == "local" else address, log_to_driver=False)
            except (ConnectionError, RuntimeError) as error:
                raise ConfigError(f"no Ray cluster at {address!r}: {error}") from None
        self.work = self.ray.remote(num_cpus=1, max_retries=0)(_work)

    def __call__(self, path: Path, command: list[str], environment: dict[str, str]) -> RayJob:
        """Return a run under way."""
        carried = {key: value for key, value in environment.items() if key in CARRIED}
        return RayJob(self.ray, self.work.remote(str(path.resolve()), command, carried))
