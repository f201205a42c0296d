"""What commands share: how they read and print, and how they leave."""

import json
import os
import sys
from typing import Annotated, Any

import typer

__all__ = ["Json", "RunArgument", "conclude", "follows", "interruptible", "numbers", "print_json", "refuse_many"]

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def follows() -> bool:
    """Return whether torchrun started this process beside a first one, which alone prints."""
    return int(os.environ.get("RANK", "0")) > 0


def refuse_many(arguments: list[str]) -> None:
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


def interruptible(work: Any, progress: Any) -> Any:
    """Return what `work` returns; where it was interrupted, say how to resume and leave with the shell's code."""
    from bayesarch.engine import Interrupted

    try:
        return work()
    except Interrupted:
        progress.stop()
        again = getattr(progress, "again", f"bayesarch resume {progress.path}")
        if not follows():
            print(f"interrupted; the place is saved. Continue with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None


def conclude(run: Any, as_json: bool) -> None:
    """Print what a run ended with."""
    if as_json:
        print_json({"path": run.path, **run.summary, "lookup": run.lookup})
    else:
        from bayesarch.terminal import print_compression, print_evaluation, print_summary

        kinds = {print_compression: run.is_compression, print_evaluation: run.is_ensemble, print_summary: True}
        next(show for show, fits in kinds.items() if fits)(run)


def numbers(text: str, flag: str) -> list[int]:
    """Return whole numbers written with commas between.

    Raises:
        ConfigError: if it is something else.
    """
    from bayesarch.errors import ConfigError

    parts = text.split(",")
    if not all(part.strip().isdigit() and 1 <= int(part) <= 5 for part in parts):
        raise ConfigError(f"{flag} are numbers from 1 to 5 with commas between, such as 1,3,5; got {text!r}")
    return [int(part) for part in parts]


def print_json(record: Any) -> None:
    """Print a record as JSON."""
    print(json.dumps(record, indent=2, sort_keys=True, default=str))
