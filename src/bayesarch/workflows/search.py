"""`search` and `resume`: examples in, a run folder with a posterior out."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from bayesarch.benchmarks import read_table
from bayesarch.data import Examples, splits_on
from bayesarch.engine import Engine, Interrupted, Method, Observer, Place, Score, World, found_by, score
from bayesarch.errors import BayesarchError, ConfigError, RunError
from bayesarch.methods import METHODS
from bayesarch.report import write_report
from bayesarch.runs import RunFolder, free_path, now, write_atomically
from bayesarch.spaces import Space
from bayesarch.workflows.compress import CompressionListener, continue_compression
from bayesarch.workflows.config import Settings
from bayesarch.workflows.ensemble import EnsembleListener, continue_ensemble
from bayesarch.workflows.environment import environment
from bayesarch.workflows.fitting import fitted
from bayesarch.workflows.job import Arrays, Job, prepare
from bayesarch.workflows.latency import image_latency
from bayesarch.workflows.lookup import look_up
from bayesarch.workflows.plan import Plan
from bayesarch.workflows.repeats import prepare_children, repeat
from bayesarch.workflows.run import Run, open_run
from bayesarch.workflows.signals import stop_on_signal
from bayesarch.workflows.summary import kept_limits, summarise
from bayesarch.workflows.train import TrainingListener, continue_together, continue_training

__all__ = ["Listener", "resume", "resume_together", "search"]


@dataclass
class Listener:
    """Who is told how a search goes; the command line shows progress with it."""

    on_plan: Callable[[Plan, Settings], None] = lambda plan, settings: None
    on_start: Callable[[Engine], None] = lambda engine: None
    on_step: Callable[[Place], None] = lambda place: None
    on_round: Callable[[dict[str, Any]], None] = lambda record: None
    on_repeats: Callable[[int, int, int], None] = lambda done, running, of: None


def search(  # noqa: PLR0913 - the public face has one keyword per flag
    data: str | os.PathLike[str] | Arrays | Examples | None = None,
    *,
    space: str | Space | None = None,
    method: str | Method[Any] | None = None,
    seed: int | None = None,
    repeats: int | None = None,
    parallel: int | None = None,
    device: str | None = None,
    out: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    max_macs: int | None = None,
    max_params: int | None = None,
    max_latency_ms: float | None = None,
    max_minutes: float | None = None,
    memory_limit: float | None = None,
    benchmark: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    set: Sequence[str] | Mapping[str, Any] | None = None,
    listener: Listener | None = None,
) -> Run:
    """Search an architecture and return the run.

    Args:
        data: a built-in set (default `digits`), an .npz file, an image folder, (images, labels) or `Examples`.
        space: a space or its name; default `nb201`.
        method: a method or its name; default `bpnas`.
        seed: decides everything random; default 0.
        repeats: search so many times, each with its own seed and its own bootstrap of the halves; the run's posterior
            is then how often each option recurs (default 1).
        parallel: so many of them at a time; default: one per core, or one on a GPU.
        device: auto (default), cpu, cuda or cuda:N.
        out: the run folder; default runs/<data>-<space>-<method>-s<seed>, numbered if taken.
        limit: use only so many training examples.
        max_macs: most MACs of the found network, for one image.
        max_params: most parameters of the found network.
        max_latency_ms: most milliseconds of the found network for one image, here and now.
        max_minutes: stop searching in time to be done after so many minutes, with the best so far.
        memory_limit: most memory beside Python and torch, in MiB; cells are computed twice, or batches taken in parts,
            where that is needed.
        benchmark: `name=path` of a table to look the found cell up in when the search has ended, as nb201=table.csv.
        config: a YAML file or a mapping of settings.
        set: `section.field=value` pairs or a mapping of dotted names; the last word.
        listener: who is told how it goes.

    Raises:
        BayesarchError: of a kind that says what is wrong; nothing is written before everything is checked.
        Interrupted: when SIGINT or SIGTERM asked to stop; `resume` continues.
    """
    listener = listener or Listener()
    job = prepare(
        data,
        space=space,
        method=method,
        seed=seed,
        repeats=repeats,
        device=device,
        limit=limit,
        max_macs=max_macs,
        max_params=max_params,
        max_latency_ms=max_latency_ms,
        max_minutes=max_minutes,
        memory_limit=memory_limit,
        config=config,
        set=set,
    )
    if benchmark is not None:
        read_table(benchmark)  # a wrong path is said now, not after hours
    target = job.world.told(Path(out) if out is not None else _free_name(job, data))
    if not job.world.leads:
        return _follow(job, RunFolder(target), fresh=True)
    _check_writable(target)
    job = fitted(job)
    listener.on_plan(job.plan(), job.settings)
    folder = RunFolder.create(target)
    folder.write_config(job.settings.record())
    folder.write_json("data.json", job.data_record())
    if job.settings.repeats > 1:
        folder.write_json("environment.json", environment(job.device))
        if isinstance(space, Space) or not isinstance(method, str | None):
            raise ConfigError("repeats run in processes of their own and need a space and a method by name")
        prepare_children(folder, job.settings.record(), data, job.examples)
        run = repeat(job, folder, parallel=parallel, on_repeats=listener.on_repeats)
    else:
        run = _go(job, folder, listener, fresh=True)
    if benchmark is not None:
        look_up(run, benchmark)
    return run


def resume(
    path: str | os.PathLike[str],
    *,
    data: Arrays | Examples | None = None,
    space: Space | None = None,
    method: Method[Any] | None = None,
    parallel: int | None = None,
    device: str | None = None,
    listener: "Listener | TrainingListener | EnsembleListener | CompressionListener | None" = None,
) -> Run:
    """Continue a broken run, do nothing on a finished one, start one that has no checkpoint yet.

    Args:
        path: the run folder.
        data: the examples, where the run was started on arrays.
        space: the space, where it is not a built-in one.
        method: the method, where it is not a built-in one.
        parallel: so many repeats at a time.
        device: another device than the run was started on.
        listener: who is told how it goes.

    Raises:
        RunError: if the folder is of another version, damaged, still running, or the data are no longer the same.
    """
    run = open_run(path, space=space)
    if run.status.get("state") == "finished":
        return run
    if World.size_here() > 1 and not run.is_search:
        raise RunError(f"only searches are shared by processes; resume {path} without torchrun")
    if World.rank_here() == 0:  # the others come to a run that the first one may have taken up already
        _refuse_if_running(run)
    if run.is_training:
        tell = listener if isinstance(listener, TrainingListener) else None
        return continue_training(run, data=data if isinstance(data, Examples) else None, device=device, listener=tell)
    if run.is_compression:
        heard_of = listener if isinstance(listener, CompressionListener) else None
        return continue_compression(run, device=device, listener=heard_of)
    if run.is_ensemble:
        told = listener if isinstance(listener, EnsembleListener) else None
        return continue_ensemble(run, parallel=parallel, device=device, listener=told)
    heard = listener if isinstance(listener, Listener) else Listener()
    job = prepare(data, space=space, method=method, device=device, config=run.folder.read_config())
    if not job.world.leads:
        return _follow(job, run.folder, fresh=False)
    single = job.settings.repeats == 1
    if single and run.folder.has("data.json") and run.data["fingerprint"] != job.data_record()["fingerprint"]:
        raise RunError(
            f"the data of {path} have changed since the run began (fingerprints differ); start a new run, "
            "or pass the same arrays as data="
        )
    if job.settings.repeats > 1:
        run.folder.write_json("environment.json", environment(job.device))
        return repeat(job, run.folder, parallel=parallel, on_repeats=heard.on_repeats, device=device)
    run.folder.write_json("data.json", job.data_record())
    return _go(job, run.folder, heard, fresh=False)


def resume_together(
    paths: Sequence[str | os.PathLike[str]],
    *,
    device: str | None = None,
    listener: TrainingListener | None = None,
) -> list[Run]:
    """Continue, or start, several trainings of one architecture as one: every step goes through all networks at once.

    Args:
        paths: their folders; those that are finished stay as they are.
        device: another device than they were started on.
        listener: who is told how the first of them goes.

    Raises:
        RunError: if one is no training, is still running, or its data are no longer the same.
        ConfigError: if their recipes differ, or draw random numbers inside the network.
        SpaceError: if their networks cannot be stacked.
    """
    runs = [open_run(path) for path in paths]
    others = [run.path for run in runs if not run.is_training]
    if others:
        raise RunError(f"only trainings can be resumed together, and {others[0]} is none; resume it by itself")
    left = [run for run in runs if run.status.get("state") != "finished"]
    for run in left:
        _refuse_if_running(run)
    if left:
        continue_together(left, device=device, listener=listener)
    return [open_run(path) for path in paths]


def _go(job: Job, folder: RunFolder, listener: Listener, *, fresh: bool) -> Run:
    """Run the engine from where the folder stands, and write what it found."""
    stop = threading.Event()

    def on_round(record: dict[str, Any]) -> None:
        folder.append_metrics(record)
        folder.write_status(state="running", stage=record["stage"], epoch=record["epoch"], pid=os.getpid())
        listener.on_round(record)

    engine = job.engine(folder, Observer(listener.on_step, on_round, stop.is_set))
    with job.working(engine.net):
        if not fresh and engine.checkpoint.exists():
            engine.restore()
        folder.write_json("environment.json", environment(job.device))
        folder.log([f"{now()} {'search' if fresh else 'resume'} at step {engine.place.steps}"])
        return _searched(job, engine, folder, listener, stop)


def _searched(job: Job, engine: Engine, folder: RunFolder, listener: Listener, stop: threading.Event) -> Run:
    """Run the engine to its end, and write what it found."""
    started = time.time()
    folder.keep_metrics(engine.place.records)
    folder.write_status(state="running", stage=engine.place.stage, epoch=0, pid=os.getpid())
    listener.on_start(engine)
    try:
        with stop_on_signal(stop):
            engine.run()
        _finish(job, engine, folder, seconds=time.time() - started)
        job.world.told("written")
    except Interrupted:
        folder.write_status(state="interrupted", stage=engine.place.stage, steps=engine.place.steps)
        folder.log([f"{now()} interrupted at step {engine.place.steps}; bayesarch resume {folder.path}"])
        raise
    except BayesarchError as error:
        with contextlib.suppress(RunError):
            folder.write_status(state="failed", stage=engine.place.stage, error=str(error))
            folder.log([f"{now()} failed: {error}"])
        raise
    return Run(folder, job.settings.space)


def _follow(job: Job, folder: RunFolder, *, fresh: bool) -> Run:
    """Do this process's part of a search whose folder another one writes."""
    engine = job.engine(folder, Observer())
    with job.working(engine.net):
        if not fresh and engine.checkpoint.exists():
            engine.restore()
        with stop_on_signal(threading.Event()):  # which of us stops, and when, is the first one's word
            engine.run()
        engine.selection()  # everybody takes a part of the last score
    job.world.told("written")
    return Run(folder, job.settings.space)


def _finish(job: Job, engine: Engine, folder: RunFolder, *, seconds: float) -> None:
    """Write posterior, found architecture, its network, summary and report."""
    posterior = job.settings.method.posterior(engine.state)
    arch = found_by(job.settings.method, engine.state)
    folder.write_json("posterior.json", posterior.to_json())
    folder.write_json("architectures/found.json", {**arch.to_json(), "string": str(arch), "digest": arch.digest})
    net = engine.net.inherit(arch).eval()
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    write_atomically(folder.path / "networks" / "found.safetensors", safetensors.torch.save(state))
    summary = summarise(job.settings, posterior, arch, engine, input_shape=job.examples.input_shape)
    latency = image_latency(net, job.examples.input_shape)
    summary["times"] = {
        "seconds_of_this_process": seconds,
        "seconds": engine.place.seconds,
        "latency_ms": latency,
    }
    if METHODS[job.settings.method.name].channels:  # nothing is trained any more: this is the network
        test = final_score(job, net)
        summary["test"] = {"accuracy": test.accuracy, "loss": test.loss, "n": test.n}
    summary["limits"], missed = kept_limits(job.settings.limits, summary, latency)
    summary["warnings"] += missed
    folder.write_json("summary.json", summary)
    write_report(folder)
    folder.write_status(state="finished", stage="done", steps=engine.place.steps)
    folder.log([f"{now()} finished: {arch}"])


def final_score(job: Job, net: Any) -> Score:
    """Return the score of a plain network on the test split."""
    test = splits_on(job.examples, job.partition, ("test",), config=job.settings.data, device=job.device)["test"]
    return score(net, test, batch_size=4 * job.settings.engine.batch_size)


def _free_name(job: Job, data: Any) -> Path:
    """Return runs/<data>-<space>-<method>-s<seed>, with a number behind it if that is taken."""
    settings = job.settings
    source = Path(settings.data.source).stem if isinstance(data, str | os.PathLike | None) else "arrays"
    stem = f"{source}-{settings.space.name}-{settings.method.name}-s{settings.seed}"
    return free_path(Path("runs") / stem)


def _refuse_if_running(run: Run) -> None:
    """Refuse to resume a run that another process is still at.

    Raises:
        RunError: naming that process.
    """
    status = run.status
    if status.get("state") == "running" and status["pid"] != os.getpid():
        pid = status["pid"]
        raise RunError(f"{run.path} is still running as process {pid}; stop that first (kill {pid})")


def _check_writable(path: Path) -> None:
    """Refuse a place that cannot take a run folder, before any time is spent.

    Raises:
        RunError: saying why.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} is not empty; choose another --out, or continue it: bayesarch resume {path}")
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise RunError(f"cannot write {path}: {parent} is no folder one can write to; choose another --out")
