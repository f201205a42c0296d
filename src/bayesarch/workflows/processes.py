"""Many run folders brought to their end, each in a process of its own, so many at a time."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bayesarch.engine import Interrupted
from bayesarch.errors import RunError
from bayesarch.workflows.run import open_run

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
) -> list[Path]:
    """Bring every run to its end, `parallel` at a time, each in a process with its share of the cores.

    Args:
        paths: the run folders.
        parallel: processes at a time.
        device: another device than the runs were made for, or None.
        stop: set from outside to stop; running ones save their places.
        on_change: told (finished, running) whenever that changes.
        keep_going: whether one that fails leaves the others alone; else it ends them.

    Returns:
        Those that failed; none unless `keep_going`.

    Raises:
        Interrupted: when stopped.
        RunError: if a run fails and `keep_going` is False; names it and what it said.
    """
    waiting = [path for path in paths if open_run(path).status.get("state") != "finished"]
    running: dict[Path, subprocess.Popen[bytes]] = {}
    threads = max(1, (os.cpu_count() or 1) // parallel)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    done, failed = len(paths) - len(waiting), []
    on_change(done, 0)
    try:
        while waiting or running:
            while waiting and len(running) < parallel and not stop.is_set():
                path = waiting.pop(0)
                command = [sys.executable, "-m", "bayesarch", "resume", str(path), "--json"]
                command += [] if device is None else ["--device", device]
                with (path / "process.txt").open("ab") as log:
                    running[path] = subprocess.Popen(
                        command, env=environment, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
                    )
                on_change(done, len(running))
            for path, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[path]
                if process.returncode != 0 and not stop.is_set():
                    if not keep_going:
                        raise RunError(f"{path} failed: {what_failed(path)}; the others are kept")
                    failed.append(path)
                done += process.returncode == 0
                on_change(done, len(running))
            if stop.is_set():
                raise Interrupted
            time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def what_failed(path: Path) -> str:
    """Return the last line that a run's process said."""
    log = path / "process.txt"
    said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return said[-1] if said else "nothing was said"
