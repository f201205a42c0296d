"""The command line: names to workflows. The only place that prints; heavy imports happen inside the commands."""

import os
import sys

import typer

from bayesarch.cli.common import follows, refuse_many
from bayesarch.cli.machine import data_app, doctor
from bayesarch.cli.networks import compress, ensemble, evaluate, export, train
from bayesarch.cli.runs import compare, report, resume, sample, show, status, tensorboard
from bayesarch.cli.searches import run, search

__all__ = ["app", "main", "start"]

app = typer.Typer(
    name="bayesarch",
    help="Bayesian neural architecture search: labelled examples in, a posterior over architectures out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

COMMANDS = (
    run, search, train, ensemble, evaluate, export, compress, resume, status, show, sample, report, compare,
    tensorboard,
)  # fmt: skip
"""Every command of one word, in the order that `--help` lists them."""

for command in COMMANDS:
    app.command()(command)
app.add_typer(data_app, name="data")
app.command()(doctor)


TRAIN = ("run", "search", "train", "ensemble", "compress", "resume")
"""Commands whose processes train."""


def start() -> None:
    """Run the command line in a process of its own: where it is going to train, with a tight heap (decision 29)."""
    from bayesarch.workflows.heap import tighten

    if sys.argv[1:2] and sys.argv[1] in TRAIN:
        tighten()
    main()


def main() -> None:
    """Run the command line; errors of ours end in one clear line and exit code 2."""
    from bayesarch.errors import BayesarchError
    from bayesarch.workflows.waiting import wait_shortly

    wait_shortly()  # before torch loads

    if follows():
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open until the process ends; the first one prints
    try:
        refuse_many(sys.argv[1:])
        app()
    except BayesarchError as error:
        who = f"process {os.environ['RANK']}: " if follows() else ""
        print(f"{who}error: {error}", file=sys.stderr)
        sys.exit(2)
