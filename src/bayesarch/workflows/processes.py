"""Many run folders brought to their end, each in a process of its own, so many at a time; here, or on a Ray cluster."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bayesarch.engine import SHARED_THREADS, Interrupted, threads_are_told
from bayesarch.errors import RunError
from bayesarch.workflows.cluster import RayLauncher
from bayesarch.workflows.heap import TUNABLES
from bayesarch.workflows.run import open_run
from bayesarch.workflows.waiting import wait_shortly

__all__ = ["at_once", "run_folders", "what_failed"]

POLL_SECONDS = 0.1


def at_once(parallel: int | None, kind: str, of: int) -> int:
    """Return how many processes run at a time: as asked, or one per core, or one on a GPU; never more than `of`."""
    wanted = parallel or (1 if kind == "cuda" else os.cpu_count() or 1)
    return min(max(wanted, 1), max(of, 1))


def run_folders(
    paths: Sequence[Path],
    *,
    parallel: int,
    device: str | None,
    stop: threading.Event,
    on_change: Callable[[int, int], None],
    keep_going: bool = False,
    ray: str | None = None,
    stacks: Sequence[Sequence[Path]] = (),
) -> list[Path]:
    """Bring every run to its end, `parallel` at a time, each in a process of its own.

    A process has its share of the cores, of which its steps take as many as they keep busy, or `OMP_NUM_THREADS`.

    Args:
        paths: the run folders.
        parallel: processes at a time.
        device: another device than the runs were made for, or None.
        stop: set from outside to stop; running ones save their places.
        on_change: told (finished, running) whenever that changes.
        keep_going: whether one that fails leaves the others alone; else it ends them.
        ray: address of a Ray cluster whose machines see the same folders, or `local`; None: processes on this machine.
        stacks: trainings among them that go as one, before the others and with all cores; if that fails (their memory
            may not suffice), each goes by itself.

    Returns:
        Those that failed; none unless `keep_going`.

    Raises:
        Interrupted: when stopped.
        RunError: if a run fails and `keep_going` is False; names it and what it said.
    """
    launch: Launch = _local if ray is None else RayLauncher(ray)
    for together in stacks:
        _as_one(together, _Crew(paths, 1, device, launch), stop, on_change)
    crew = _Crew(paths, parallel, device, launch)
    try:
        while crew.busy:
            if stop.is_set():
                raise Interrupted
            crew.start()
            for path in crew.ended():
                if not keep_going:
                    raise RunError(f"{path} failed: {what_failed(path)}; the others are kept")
            if crew.changed:
                on_change(crew.done, len(crew.running))
            time.sleep(POLL_SECONDS)
    finally:
        crew.dismiss()
    return crew.failed


def _as_one(
    together: Sequence[Path], crew: "_Crew", stop: threading.Event, on_change: Callable[[int, int], None]
) -> None:
    """Train a stack in one process, whatever comes of it.

    Raises:
        Interrupted: when stopped.
    """
    left = [path for path in together if open_run(path).status.get("state") != "finished"]
    if len(left) < 2 or any(_at_work(path) for path in left):
        return
    on_change(0, len(left))
    job = crew.launched(left)
    try:
        while job.poll() is None:
            if stop.is_set():
                raise Interrupted
            time.sleep(POLL_SECONDS)
    finally:
        if job.poll() is None:
            job.terminate()
            job.wait()


class _Job(Protocol):
    """A run under way somewhere; what `subprocess.Popen` says of a process."""

    returncode: int | None

    def poll(self) -> int | None:
        """Return how it ended, or None."""

    def terminate(self) -> None:
        """Ask it to stop."""

    def wait(self) -> int:
        """Wait until it has ended."""


Launch = Callable[[Path, list[str], dict[str, str]], _Job]
"""(run folder, command, environment) -> a job under way."""


def _local(path: Path, command: list[str], environment: dict[str, str]) -> _Job:
    """Start a process on this machine; what it says on standard error goes into its folder."""
    with (path / "process.txt").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)


class _Crew:
    """Processes at work on run folders.

    Args:
        paths: the run folders.
        parallel: processes at a time.
        device: another device than the runs were made for, or None.
        launch: starts one.
    """

    def __init__(self, paths: Sequence[Path], parallel: int, device: str | None, launch: Launch) -> None:
        self.waiting, self.parallel, self.device, self.launch = list(paths), parallel, device, launch
        self.running: dict[Path, _Job] = {}
        self.failed: list[Path] = []
        self.done, self._told = 0, (-1, -1)
        self.environment = {"GLIBC_TUNABLES": TUNABLES, **os.environ}
        wait_shortly(self.environment)
        if not threads_are_told():
            ours = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
            self.environment |= {"OMP_NUM_THREADS": str(max(1, ours // parallel)), SHARED_THREADS: "1"}

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.running)

    @property
    def changed(self) -> bool:
        """Whether (done, running) is another than when this was last asked."""
        before, self._told = self._told, (self.done, len(self.running))
        return before != self._told

    def start(self) -> None:
        """Start what may run now; what a killed parent left running is waited for, what is finished is counted."""
        orphans = [path for path in self.waiting if _at_work(path)]
        for path in [path for path in self.waiting if path not in orphans]:
            if open_run(path).status.get("state") == "finished":
                self.done += 1
            elif len(self.running) + len(orphans) < self.parallel:
                self.running[path] = self.launched([path])
            else:
                continue
            self.waiting.remove(path)

    def launched(self, paths: Sequence[Path]) -> _Job:
        """Start a process that brings runs to their end; several as one. What it says goes to the first's folder."""
        folders = [str(path.resolve()) for path in paths]
        command = [sys.executable, "-m", "bayesarch", "resume", *folders, "--json"]
        command += [] if self.device is None else ["--device", self.device]
        return self.launch(paths[0], command, self.environment)

    def ended(self) -> list[Path]:
        """Take processes that have ended from the running ones, and return those that failed."""
        fresh = []
        for path, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[path]
            self.done += process.returncode == 0
            if process.returncode != 0:
                fresh.append(path)
        self.failed += fresh
        return fresh

    def dismiss(self) -> None:
        """Ask everyone to stop, and wait until their places are saved."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait()


def _at_work(path: Path) -> bool:
    """Return whether a process that is not ours is still at a run."""
    status = open_run(path).status
    return status.get("state") == "running" and status.get("pid") != os.getpid()


def what_failed(path: Path) -> str:
    """Return the last line that a run's process said."""
    log = path / "process.txt"
    said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return said[-1] if said else "nothing was said"
