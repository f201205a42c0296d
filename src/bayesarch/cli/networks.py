"""Commands that train and judge networks: `train`, `ensemble`, `evaluate`, `export`, `compress`."""

from typing import Annotated

import typer

from bayesarch.cli.common import Json, RunArgument, conclude, interruptible, numbers, print_json

__all__ = ["compress", "ensemble", "evaluate", "export", "train"]


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
    """Train what was found as a plain network. The test split is read once, at the end."""
    from bayesarch.terminal import TrainingProgress
    from bayesarch.workflows.train import train as run_training

    with TrainingProgress(quiet=as_json) as progress:
        done = interruptible(
            lambda: run_training(
                target, data, space=space, inherit=inherit, seed=seed, device=device, out=out, limit=limit,
                config=config, set=set_, listener=progress.listener,
            ),
            progress,
        )  # fmt: skip
    conclude(done, as_json)


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
    """Train an ensemble of a finished search. It is calibrated, and scored on the test split."""
    from bayesarch.terminal import EnsembleProgress
    from bayesarch.workflows.ensemble import ensemble as run_ensemble

    with EnsembleProgress(quiet=as_json) as progress:
        done = interruptible(
            lambda: run_ensemble(
                run, members=members, candidates=from_, pool=pool, seed=seed, device=device, out=out, parallel=parallel,
                ray=ray, config=config, set=set_, listener=progress.listener,
            ),
            progress,
        )  # fmt: skip
    conclude(done, as_json)


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
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [auto]")] = None,
    as_json: Json = False,
) -> None:
    """Score a run's answers on the test split. Calibration, uncertainty, sets, strange and corrupted images."""
    from bayesarch.data.corruptions import CORRUPTIONS, STANDARD
    from bayesarch.terminal import print_evaluation
    from bayesarch.workflows.evaluate import evaluate as run_evaluation
    from bayesarch.workflows.run import open_run

    known: dict[str, tuple[str, ...]] = {"all": tuple(CORRUPTIONS), "standard": STANDARD, "none": ()}
    record = run_evaluation(
        run,
        ood=ood,
        corruptions=known.get(corruptions, tuple(corruptions.split(","))),
        severities=numbers(severities, "--severities"),
        seed=seed,
        device=device,
    )
    print_json(record) if as_json else print_evaluation(open_run(run))


def export(
    run: RunArgument,
    out: Annotated[str | None, typer.Option(help="A file (.onnx, .pt2, .py) or a folder [RUN/exports]")] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="onnx, program, source or all [by the ending]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a file that runs without us. It is checked on real images before it gets its name."""
    from bayesarch.workflows.export import export as write

    rows = write(run, out, format=format_)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(
            f"{row['file']}  {row['bytes'] / 1e6:.2f} MB, probabilities of {row['examples']} images within "
            f"{row['difference']:.1e} of the network's"
        )


def compress(
    module: Annotated[
        str, typer.Option(metavar="FILE.py:NAME", help="Your network; or lenet-5, resnet18, ... [lenet-300-100]")
    ] = "lenet-300-100",
    weights: Annotated[str | None, typer.Option(help="Its weights, .safetensors or .pt [it is trained first]")] = None,
    data: Annotated[str | None, typer.Option(help="As search takes it [digits]")] = None,
    method: Annotated[str | None, typer.Option(help="bernoulli, evidence, switches, ... [bernoulli]")] = None,
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
    """Make a network smaller. Units that are not worth what they cost are cut, and the rest is trained on."""
    from bayesarch.terminal import CompressionProgress
    from bayesarch.workflows.compress import compress as run_compress
    from bayesarch.workflows.limits import in_full

    with CompressionProgress(quiet=as_json) as progress:
        run = interruptible(
            lambda: run_compress(
                module, data, weights=weights, method=method, max_params=in_full(max_params, "--params"),
                max_macs=in_full(max_macs, "--macs"), max_latency_ms=max_latency_ms, max_drop=max_drop, seed=seed,
                device=device, out=out, limit=limit, config=config, set=set_, listener=progress.listener,
            ),
            progress,
        )  # fmt: skip
    conclude(run, as_json)
