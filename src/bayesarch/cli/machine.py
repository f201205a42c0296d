"""Commands on data and on this machine: `data check`, `data convert`, `doctor`."""

from typing import Annotated

import typer

from bayesarch.cli.common import Json, print_json

__all__ = ["data_app", "doctor"]


data_app = typer.Typer(help="Look at data, and convert it.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="As `search --data` takes it.")],
    as_json: Json = False,
) -> None:
    """Count, and name what is wrong: damaged files, one image in two splits, classes too small; suggest settings."""
    from bayesarch.workflows.data_check import check_data

    record = check_data(path)
    if as_json:
        print_json(record)
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


def doctor(as_json: Json = False) -> None:
    """Check that everything works on this machine."""
    from bayesarch.terminal import print_doctor
    from bayesarch.workflows.doctor import doctor as examine

    result = examine()
    print_json(result) if as_json else print_doctor(result)
    if not all(check["passed"] for check in result["checks"]):
        raise typer.Exit(1)
