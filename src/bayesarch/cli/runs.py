"""Commands on run folders: `resume`, `status`, `show`, `sample`, `report`, `compare`, `tensorboard`."""

import sys
from typing import Annotated, Any

import typer

from bayesarch.cli.common import Json, RunArgument, conclude, follows, interruptible, print_json

__all__ = ["compare", "report", "resume", "sample", "show", "status", "tensorboard"]


def resume(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="A run folder; or several trainings of one architecture.")
    ],
    device: Annotated[str | None, typer.Option(help="Another device than the run was started on")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="So many repeats at a time [one per core]")] = None,
    as_json: Json = False,
) -> None:
    """Continue a broken run. Nothing happens to a finished one; several trainings of one architecture go on as one."""
    from bayesarch.terminal import CompressionProgress, EnsembleProgress, Progress, TrainingProgress
    from bayesarch.workflows.run import open_run
    from bayesarch.workflows.search import resume as run_resume
    from bayesarch.workflows.search import resume_together

    run = runs[0]
    if len(runs) > 1:
        with TrainingProgress(quiet=as_json) as progress:
            each = interruptible(lambda: resume_together(runs, device=device, listener=progress.listener), progress)
        for done in each:
            conclude(done, as_json)
        return
    opened = open_run(run)
    kind: Any = TrainingProgress if opened.is_training else EnsembleProgress if opened.is_ensemble else Progress
    kind = CompressionProgress if opened.is_compression else kind
    with kind(quiet=as_json or follows()) as progress:
        done = interruptible(
            lambda: run_resume(run, device=device, parallel=parallel, listener=progress.listener), progress
        )
    conclude(done, as_json)


def status(
    run: Annotated[str, typer.Argument(metavar="[RUN|FOLDER]", help="A run folder, or a folder of runs.")] = "runs",
    as_json: Json = False,
) -> None:
    """Say how a run stands, or every run in a folder. Running, interrupted, failed or finished, and how far."""
    from bayesarch.terminal import print_overview, status_line
    from bayesarch.workflows.overview import is_run, overview
    from bayesarch.workflows.run import open_run

    if not is_run(run):
        rows = overview(run)
        print_json(rows) if as_json else print_overview(rows, run)
        return
    opened = open_run(run)
    print_json(opened.status) if as_json else print(status_line(opened))


def show(
    run: Annotated[str, typer.Argument(metavar="RUN|ARCHITECTURE", help="A run folder, or an architecture's string.")],
    space: Annotated[str, typer.Option(help="Space of the architecture")] = "nb201",
    input_shape: Annotated[str, typer.Option(help="Channels, height and width to price it at")] = "3,32,32",
    classes: Annotated[int, typer.Option(help="Classes to price it at")] = 10,
    benchmark: Annotated[str | None, typer.Option(help="Table to look the cell up in: nb201=PATH")] = None,
    as_json: Json = False,
) -> None:
    """Print a run's table, or what an architecture costs. Before the end: the best so far."""
    from bayesarch.spaces.architecture import is_notation
    from bayesarch.terminal import print_architecture, print_summary
    from bayesarch.workflows.run import open_run

    if is_notation(run):
        from bayesarch.workflows.describe import describe

        record = describe(run, space=space, input_shape=input_shape, classes=classes)
        print_json(record) if as_json else print_architecture(record)
        return
    opened = open_run(run)
    if not opened.folder.has("summary.json") and opened.best is not None:
        from bayesarch.terminal import status_line

        record = {"state": opened.status["state"], "best": str(opened.best), "rounds": len(opened.metrics)}
        print_json(record) if as_json else print(f"{status_line(opened)}\nbest so far: {opened.best}")
        return
    if benchmark is not None:
        from bayesarch.workflows.lookup import look_up

        look_up(opened, benchmark)
    if opened.is_ensemble or opened.is_compression:
        conclude(opened, as_json)
        return
    print_json(
        {**opened.summary, "posterior": opened.posterior.to_json(), "lookup": opened.lookup}
    ) if as_json else print_summary(opened)


def sample(
    run: RunArgument,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many")] = 5,
    seed: Annotated[int, typer.Option(help="Decides the draws")] = 0,
    as_json: Json = False,
) -> None:
    """Draw architectures from a run's posterior. Each with its parameters and MACs."""
    from bayesarch.terminal import print_samples
    from bayesarch.workflows.sample import sample as draw

    rows = draw(run, n, seed=seed)
    print_json(rows) if as_json else print_samples(rows)


def report(run: RunArgument) -> None:
    """Write a run's pages again from its records. Says where they are."""
    from bayesarch.workflows.rewrite import rewrite

    print("\n".join(rewrite(run)))


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="Finished run folders.")],
    out: Annotated[str | None, typer.Option(help="An HTML page to write, with pictures")] = None,
    as_json: Json = False,
) -> None:
    """Set runs side by side, with intervals. Searches are paired by seed, trained networks and ensembles by example."""
    from bayesarch.workflows.compare import compare as set_side_by_side

    record = set_side_by_side(runs, out=out)
    if as_json:
        print_json(record)
        return
    from bayesarch.terminal import print_answers, print_comparison

    print_answers(record, out) if record.get("kind") == "answers" else print_comparison(record, out)


def tensorboard(
    path: Annotated[str, typer.Argument(metavar="[RUN|FOLDER]", help="A run folder, or a folder of runs.")] = "runs",
    follow: Annotated[bool, typer.Option("--follow", help="Go on writing while runs go on, until Control-C.")] = False,
) -> None:
    """Write runs for TensorBoard, from their records. Losses, accuracies and weights of every run below a folder."""
    import threading

    from bayesarch.report.amounts import counted
    from bayesarch.workflows.events import follow as looks

    runs = records = 0
    try:
        for runs, records in looks(path, threading.Event() if follow else None):
            if follow:
                line = f"\r{counted(records, 'record')} of {counted(runs, 'run')}; Control-C ends"
                print(line, end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    print(f"{counted(records, 'record')} of {counted(runs, 'run')} written; see them with: tensorboard --logdir {path}")
