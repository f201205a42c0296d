"""The command line: names to workflows. The only place that prints; heavy imports happen inside the commands."""

import json
import os
import sys
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="bayesarch",
    help="Bayesian neural architecture search: labelled examples in, a posterior over architectures out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def main() -> None:
    """Run the command line; errors of ours end in one clear line and exit code 2."""
    # Before torch loads: waiting threads sleep instead of spinning (docs/decisions/0009-waiting-threads-sleep.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from bayesarch.errors import BayesarchError

    if _follows():
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open until the process ends; the first one prints
    try:
        _refuse_many(sys.argv[1:])
        app()
    except BayesarchError as error:
        who = f"process {os.environ['RANK']}: " if _follows() else ""
        print(f"{who}error: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
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
    """The whole road: search, ensemble, calibration, evaluation, export, report."""
    from bayesarch.terminal import RoadProgress
    from bayesarch.workflows.whole import run as run_all

    with RoadProgress(out, quiet=as_json) as progress:
        done = _interruptible(
            lambda: run_all(
                data, out=out, seed=seed, device=device, config=config, set=set_, listener=progress.listener
            ),
            progress,
        )
    _conclude(done, as_json)
    if not as_json:
        for row in done.folder.read_json("exports/exports.json")["files"]:
            print(f"{'export':<10} {done.path}/exports/{row['file']}, within {row['difference']:.1e} of the network")


@app.command()
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
    """Search an architecture: train a supernet, decide its cell, write a run folder and a report."""
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
        _print_json(plan.to_json()) if as_json else print(plan_line(plan, job.settings))
        return
    from bayesarch.terminal import Progress
    from bayesarch.workflows.search import search as run_search

    with Progress(quiet=as_json or _follows()) as progress:
        run = _interruptible(
            lambda: run_search(
                data, out=out, parallel=parallel, benchmark=benchmark, listener=progress.listener, **asked
            ),
            progress,
        )
    _conclude(run, as_json)


@app.command()
def train(
    target: Annotated[
        str, typer.Argument(metavar="RUN|ARCHITECTURE", help="A finished search, or an architecture's notation.")
    ],
    data: Annotated[str | None, typer.Option(help="As `search` takes it [the run's, or digits]")] = None,
    space: Annotated[str | None, typer.Option(help="Space of the architecture [nb201]")] = None,
    inherit: Annotated[bool, typer.Option("--inherit", help="Start from the weights that the search left")] = False,
    seed: Annotated[int | None, typer.Option(help="Decides everything random [0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [auto]")] = None,
    out: Annotated[str | None, typer.Option(help="Run folder [runs/<data>-<digest>-train-s<seed>]")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only so many training examples")] = None,
    config: Annotated[str | None, typer.Option(help="YAML file of settings, such as a recipe")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=V", help="One setting, such as train.epochs=20")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a found architecture as a plain network; the test split is read once, at the end."""
    from bayesarch.terminal import TrainingProgress
    from bayesarch.workflows.train import train as run_training

    with TrainingProgress(quiet=as_json) as progress:
        done = _interruptible(
            lambda: run_training(
                target, data, space=space, inherit=inherit, seed=seed, device=device, out=out, limit=limit,
                config=config, set=set_, listener=progress.listener,
            ),
            progress,
        )  # fmt: skip
    _conclude(done, as_json)


@app.command()
def ensemble(
    run: RunArgument,
    members: Annotated[int | None, typer.Option(min=1, help="Members of the ensemble [3]")] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="bpnas, samples, top, neighbours, deepens, nes-rs, nes-re, nesbs-mc, nesbs-svgd [bpnas]",
        ),
    ] = None,
    pool: Annotated[int | None, typer.Option(min=2, help="Candidates trained by nes-rs and nes-re [12]")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random [0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [auto]")] = None,
    out: Annotated[str | None, typer.Option(help="Run folder [<run>-<source>]")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Members trained at a time [one per core]")] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Train members on a Ray cluster; local: one on this machine")
    ] = None,
    config: Annotated[str | None, typer.Option(help="YAML file of settings")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=V", help="One setting, such as train.epochs=50")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train an ensemble of a finished search, calibrate it, and score it on the test split."""
    from bayesarch.terminal import EnsembleProgress
    from bayesarch.workflows.ensemble import ensemble as run_ensemble

    with EnsembleProgress(quiet=as_json) as progress:
        done = _interruptible(
            lambda: run_ensemble(
                run, members=members, candidates=from_, pool=pool, seed=seed, device=device, out=out, parallel=parallel,
                ray=ray, config=config, set=set_, listener=progress.listener,
            ),
            progress,
        )  # fmt: skip
    _conclude(done, as_json)


@app.command()
def evaluate(
    run: RunArgument,
    ood: Annotated[
        str | None, typer.Option(metavar="DATA", help="Can it tell such images from its own? [shuffled test images]")
    ] = None,
    corruptions: Annotated[
        str, typer.Option(help="Kinds of corruption, or all, standard (CIFAR-10-C's fifteen), none")
    ] = "standard",
    severities: Annotated[str, typer.Option(help="Of 1 to 5")] = "1,3,5",
    seed: Annotated[int, typer.Option(help="Decides bootstraps and corruptions")] = 0,
    as_json: Json = False,
) -> None:
    """Score a run's answers on the test split: calibration, uncertainty, sets, strange and corrupted images."""
    from bayesarch.data.corruptions import CORRUPTIONS, STANDARD
    from bayesarch.terminal import print_evaluation
    from bayesarch.workflows.evaluate import evaluate as run_evaluation
    from bayesarch.workflows.run import open_run

    known: dict[str, tuple[str, ...]] = {"all": tuple(CORRUPTIONS), "standard": STANDARD, "none": ()}
    record = run_evaluation(
        run,
        ood=ood,
        corruptions=known.get(corruptions, tuple(corruptions.split(","))),
        severities=_numbers(severities, "--severities"),
        seed=seed,
    )
    _print_json(record) if as_json else print_evaluation(open_run(run))


@app.command()
def export(
    run: RunArgument,
    out: Annotated[str | None, typer.Option(help="A file (.onnx, .pt2, .py) or a folder [RUN/exports]")] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="onnx, program, source or all [by the ending]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a network or an ensemble as a file that runs without us; checked on real images before it gets its name."""
    from bayesarch.workflows.export import export as write

    rows = write(run, out, format=format_)
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        print(
            f"{row['file']}  {row['bytes'] / 1e6:.2f} MB, probabilities of {row['examples']} images within "
            f"{row['difference']:.1e} of the network's"
        )


@app.command()
def compress(
    module: Annotated[
        str, typer.Option(metavar="FILE.py:NAME", help="Your network; or lenet-5, resnet18, ... [lenet-300-100]")
    ] = "lenet-300-100",
    weights: Annotated[str | None, typer.Option(help="Its weights, .safetensors or .pt [it is trained first]")] = None,
    data: Annotated[str | None, typer.Option(help="As search takes it [digits]")] = None,
    method: Annotated[str | None, typer.Option(help="evidence, magnitude, random, group-lasso [evidence]")] = None,
    max_params: Annotated[str | None, typer.Option("--params", "--max-params", help="Most parameters, as 20k")] = None,
    max_macs: Annotated[str | None, typer.Option("--macs", "--max-macs", help="Most MACs for one image")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", "--max-latency-ms", help="Most milliseconds for one image, here")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Most accuracy it may lose, on the selection split [0.01 without a limit]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random [0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [auto]")] = None,
    out: Annotated[str | None, typer.Option(help="Run folder [runs/<data>-compress-s<seed>]")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only so many training examples")] = None,
    config: Annotated[str | None, typer.Option(help="YAML file of settings")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=V", help="One setting, such as compress.inputs=true")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a network smaller: units that the evidence lets go are cut, and the rest is trained on."""
    from bayesarch.terminal import CompressionProgress
    from bayesarch.workflows.compress import compress as run_compress
    from bayesarch.workflows.limits import in_full

    with CompressionProgress(quiet=as_json) as progress:
        run = _interruptible(
            lambda: run_compress(
                module, data, weights=weights, method=method, max_params=in_full(max_params, "--params"),
                max_macs=in_full(max_macs, "--macs"), max_latency_ms=max_latency_ms, max_drop=max_drop, seed=seed,
                device=device, out=out, limit=limit, config=config, set=set_, listener=progress.listener,
            ),
            progress,
        )  # fmt: skip
    _conclude(run, as_json)


@app.command()
def resume(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="A run folder; or several trainings of one architecture.")
    ],
    device: Annotated[str | None, typer.Option(help="Another device than the run was started on")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="So many repeats at a time [one per core]")] = None,
    as_json: Json = False,
) -> None:
    """Continue a broken run; nothing happens to a finished one. Several trainings of one architecture go on as one."""
    from bayesarch.terminal import CompressionProgress, EnsembleProgress, Progress, TrainingProgress
    from bayesarch.workflows.run import open_run
    from bayesarch.workflows.search import resume as run_resume
    from bayesarch.workflows.search import resume_together

    run = runs[0]
    if len(runs) > 1:
        with TrainingProgress(quiet=as_json) as progress:
            each = _interruptible(lambda: resume_together(runs, device=device, listener=progress.listener), progress)
        for done in each:
            _conclude(done, as_json)
        return
    opened = open_run(run)
    kind: Any = TrainingProgress if opened.is_training else EnsembleProgress if opened.is_ensemble else Progress
    kind = CompressionProgress if opened.is_compression else kind
    with kind(quiet=as_json or _follows()) as progress:
        done = _interruptible(
            lambda: run_resume(run, device=device, parallel=parallel, listener=progress.listener), progress
        )
    _conclude(done, as_json)


@app.command()
def status(run: RunArgument, as_json: Json = False) -> None:
    """Say whether a run is running, interrupted, failed or finished, and how far it is."""
    from bayesarch.terminal import status_line
    from bayesarch.workflows.run import open_run

    opened = open_run(run)
    _print_json(opened.status) if as_json else print(status_line(opened))


@app.command()
def show(
    run: Annotated[str, typer.Argument(metavar="RUN|ARCHITECTURE", help="A run folder, or an architecture's string.")],
    space: Annotated[str, typer.Option(help="Space of the architecture")] = "nb201",
    input_shape: Annotated[str, typer.Option(help="Channels, height and width to price it at")] = "3,32,32",
    classes: Annotated[int, typer.Option(help="Classes to price it at")] = 10,
    benchmark: Annotated[str | None, typer.Option(help="Table to look the cell up in: nb201=PATH")] = None,
    as_json: Json = False,
) -> None:
    """Print the final table of a run, or the best so far; or what an architecture is and costs."""
    from bayesarch.spaces.architecture import is_notation
    from bayesarch.terminal import print_architecture, print_summary
    from bayesarch.workflows.run import open_run

    if is_notation(run):
        from bayesarch.workflows.describe import describe

        record = describe(run, space=space, input_shape=input_shape, classes=classes)
        _print_json(record) if as_json else print_architecture(record)
        return
    opened = open_run(run)
    if not opened.folder.has("summary.json") and opened.best is not None:
        from bayesarch.terminal import status_line

        record = {"state": opened.status["state"], "best": str(opened.best), "rounds": len(opened.metrics)}
        _print_json(record) if as_json else print(f"{status_line(opened)}\nbest so far: {opened.best}")
        return
    if benchmark is not None:
        from bayesarch.workflows.lookup import look_up

        look_up(opened, benchmark)
    if opened.is_ensemble or opened.is_compression:
        _conclude(opened, as_json)
        return
    _print_json(
        {**opened.summary, "posterior": opened.posterior.to_json(), "lookup": opened.lookup}
    ) if as_json else print_summary(opened)


@app.command()
def sample(
    run: RunArgument,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many")] = 5,
    seed: Annotated[int, typer.Option(help="Decides the draws")] = 0,
    as_json: Json = False,
) -> None:
    """Draw architectures from a run's posterior, with their parameters and MACs."""
    from bayesarch.terminal import print_samples
    from bayesarch.workflows.sample import sample as draw

    rows = draw(run, n, seed=seed)
    _print_json(rows) if as_json else print_samples(rows)


@app.command()
def report(run: RunArgument) -> None:
    """Write the pages of a run again from its records, and say where they are."""
    from bayesarch.workflows.rewrite import rewrite

    print("\n".join(rewrite(run)))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="Finished run folders.")],
    out: Annotated[str | None, typer.Option(help="An HTML page to write, with pictures")] = None,
    as_json: Json = False,
) -> None:
    """Set runs side by side, with intervals: searches paired by seed, trained networks and ensembles by example."""
    from bayesarch.workflows.compare import compare as set_side_by_side

    record = set_side_by_side(runs, out=out)
    if as_json:
        _print_json(record)
        return
    from bayesarch.terminal import print_answers, print_comparison

    print_answers(record, out) if record.get("kind") == "answers" else print_comparison(record, out)


data_app = typer.Typer(help="Look at data, and convert it.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


@data_app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="As `search --data` takes it.")],
    as_json: Json = False,
) -> None:
    """Count, and name what is wrong: damaged files, one image in two splits, classes too small; suggest settings."""
    from bayesarch.workflows.data_check import check_data

    record = check_data(path)
    if as_json:
        _print_json(record)
    else:
        from bayesarch.terminal import print_data_check

        print_data_check(record)
    if not record["usable"]:
        raise typer.Exit(1)


@data_app.command("convert")
def data_convert(
    kind: Annotated[str, typer.Argument(metavar="imagenet16", help="What it is: imagenet16.")],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where its official batches are.")],
    out: Annotated[str, typer.Argument(metavar="OUT.npz", help="The file to write.")],
    classes: Annotated[int, typer.Option(min=2, help="Keep the first so many classes")] = 120,
) -> None:
    """Write official batches that are pickles as .npz; anything in them that is no array is refused, not run."""
    from pathlib import Path

    from bayesarch.data import imagenet16
    from bayesarch.errors import ConfigError
    from bayesarch.runs import write_arrays

    if kind != "imagenet16":
        raise ConfigError(f"there is a converter for imagenet16; got {kind!r}")
    arrays = imagenet16(Path(folder), classes=classes)
    write_arrays(Path(out), arrays)
    print(f"{out}: {len(arrays['y_train'])} training and {len(arrays['y_test'])} test images, {classes} classes")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check that everything works on this machine."""
    from bayesarch.terminal import print_doctor
    from bayesarch.workflows.doctor import doctor as examine

    result = examine()
    _print_json(result) if as_json else print_doctor(result)
    if not all(check["passed"] for check in result["checks"]):
        raise typer.Exit(1)


def _follows() -> bool:
    """Return whether torchrun started this process beside a first one, which alone prints."""
    return int(os.environ.get("RANK", "0")) > 0


def _refuse_many(arguments: list[str]) -> None:
    """Refuse commands that several processes would each do in full, into one folder.

    Raises:
        ConfigError: saying what can be shared.
    """
    from bayesarch.errors import ConfigError

    shared = ("search", "resume", "--help")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not any(word in arguments[:1] for word in shared):
        raise ConfigError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, and only `search` and `resume` of a search are "
            f"shared by several; run {' '.join(arguments[:1]) or 'this'} without torchrun"
        )


def _interruptible(work: Any, progress: Any) -> Any:
    """Return what `work` returns; where it was interrupted, say how to resume and leave with the shell's code."""
    from bayesarch.engine import Interrupted

    try:
        return work()
    except Interrupted:
        progress.stop()
        again = getattr(progress, "again", f"bayesarch resume {progress.path}")
        if not _follows():
            print(f"interrupted; the place is saved. Continue with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None


def _conclude(run: Any, as_json: bool) -> None:
    if as_json:
        _print_json({"path": run.path, **run.summary, "lookup": run.lookup})
    else:
        from bayesarch.terminal import print_compression, print_evaluation, print_summary

        kinds = {print_compression: run.is_compression, print_evaluation: run.is_ensemble, print_summary: True}
        next(show for show, fits in kinds.items() if fits)(run)


def _numbers(text: str, flag: str) -> list[int]:
    """Return whole numbers written with commas between.

    Raises:
        ConfigError: if it is something else.
    """
    from bayesarch.errors import ConfigError

    parts = text.split(",")
    if not all(part.strip().isdigit() and 1 <= int(part) <= 5 for part in parts):
        raise ConfigError(f"{flag} are numbers from 1 to 5 with commas between, such as 1,3,5; got {text!r}")
    return [int(part) for part in parts]


def _print_json(record: Any) -> None:
    print(json.dumps(record, indent=2, sort_keys=True, default=str))
