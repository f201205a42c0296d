"""Commands that search: `run`, the whole road, and `search`."""

from typing import Annotated, Any

import typer

from bayesarch.cli.common import Json, conclude, follows, interruptible, print_json

__all__ = ["run", "search"]


def run(
    data: Annotated[str | None, typer.Option(help="As `search` takes it [digits]")] = None,
    out: Annotated[str, typer.Option(help="A folder for everything; one that is there is gone on with")] = "runs/run",
    seed: Annotated[int | None, typer.Option(help="Decides everything random [0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [auto]")] = None,
    config: Annotated[str | None, typer.Option(help="YAML file of settings")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=V", help="One setting, such as ensemble.members=5")
    ] = None,
    as_json: Json = False,
) -> None:
    """Do it all: search, ensemble, evaluate, export."""
    from bayesarch.terminal import RoadProgress
    from bayesarch.workflows.whole import run as run_all

    with RoadProgress(out, quiet=as_json) as progress:
        done = interruptible(
            lambda: run_all(
                data, out=out, seed=seed, device=device, config=config, set=set_, listener=progress.listener
            ),
            progress,
        )
    conclude(done, as_json)
    if not as_json:
        for row in done.folder.read_json("exports/exports.json")["files"]:
            print(f"{'export':<10} {done.path}/exports/{row['file']}, within {row['difference']:.1e} of the network")


def search(
    data: Annotated[
        str | None, typer.Option(help="digits, planted, a folder of images, an .npz or .parquet file, hf:NAME [digits]")
    ] = None,
    space: Annotated[str | None, typer.Option(help="Search space [nb201]")] = None,
    method: Annotated[str | None, typer.Option(help="bpnas, drnas, darts, gdas, random, ... [bpnas]")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random [0]")] = None,
    module: Annotated[
        str | None, typer.Option(metavar="FILE.py:NAME", help="Search the channels of your own network, by pgnas")
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help="Search so often, own seeds and bootstraps: how often does what recur? [1]"),
    ] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="So many repeats at a time [one per core]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [auto]")] = None,
    out: Annotated[str | None, typer.Option(help="Run folder [runs/<data>-<space>-<method>-s<seed>]")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only so many training examples")] = None,
    max_macs: Annotated[str | None, typer.Option(help="Most MACs of the found network, such as 2.5M")] = None,
    max_params: Annotated[str | None, typer.Option(help="Most parameters of the found network")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Most milliseconds of it for one image, here")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Be done after so long, with the best so far")] = None,
    memory_limit: Annotated[str | None, typer.Option(help="Most memory beside Python and torch, such as 4G")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Table to look the cell up in at the end: nb201=PATH")] = None,
    config: Annotated[str | None, typer.Option(help="YAML file of settings")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=V", help="One setting, such as method.delta=0.1")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Search an architecture. A supernet is trained, its cell decided, a run folder and a report written."""
    from bayesarch.workflows.fitting import fitted, mebibytes
    from bayesarch.workflows.limits import in_full

    asked: dict[str, Any] = {
        "max_macs": in_full(max_macs, "--max-macs"),
        "max_params": in_full(max_params, "--max-params"),
        "max_latency_ms": max_latency_ms,
        "max_minutes": max_minutes,
        "memory_limit": mebibytes(memory_limit, "--memory-limit"),
        "space": "module" if module is not None and space is None else space,
        "method": "pgnas" if module is not None and method is None else method,
        "seed": seed,
        "repeats": repeats,
        "device": device,
        "limit": limit,
        "config": config,
        "set": [*(set_ or []), *([] if module is None else [f"space.path={module}"])] or None,
    }
    if dry_run:
        from bayesarch.terminal import plan_line
        from bayesarch.workflows.job import prepare

        job = fitted(prepare(data, **asked))
        plan = job.plan()
        print_json(plan.to_json()) if as_json else print(plan_line(plan, job.settings))
        return
    from bayesarch.terminal import Progress
    from bayesarch.workflows.search import search as run_search

    with Progress(quiet=as_json or follows()) as progress:
        run = interruptible(
            lambda: run_search(
                data, out=out, parallel=parallel, benchmark=benchmark, listener=progress.listener, **asked
            ),
            progress,
        )
    conclude(run, as_json)
