"""Tabular benchmarks: test accuracy of every architecture on some data sets, read from a file the user has.

A table is a .parquet, .csv or .npz file with a column `arch`, the architecture in the space's own notation, and per
data set one column of mean test accuracies in percent, named in `Benchmark.columns`. Other columns are passed over.

Reference: Dong and Yang, "NAS-Bench-201", ICLR 2020; Dong et al., "NATS-Bench", TPAMI 2021.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayesarch.errors import ConfigError, DataError, nearest
from bayesarch.spaces import Architecture

__all__ = ["BENCHMARKS", "Answer", "Benchmark", "Table", "read_table"]


@dataclass(frozen=True)
class Benchmark:
    """What a table is about.

    Attributes:
        space: name of the space that its strings are of.
        columns: data set -> the column of its test accuracies, %.
        aliases: data set -> other names that users give it.
        reference: the cell that results are set beside, and what it is called.
        note: what the accuracies are.
    """

    space: str
    columns: dict[str, str]
    aliases: dict[str, tuple[str, ...]]
    reference: tuple[str, str]
    note: str


BENCHMARKS: dict[str, Benchmark] = {
    "nb201": Benchmark(
        space="nb201",
        columns={"cifar10": "c10_test_200", "cifar100": "c100_test_200", "ImageNet16-120": "in16_test_200"},
        aliases={"cifar10": ("cifar-10", "c10"), "cifar100": ("cifar-100", "c100"), "ImageNet16-120": ("in16",)},
        reference=(
            "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|",
            "the benchmark's ResNet cell",
        ),
        note="test accuracy after 200 epochs of the benchmark's training, mean over its seeds",
    )
}
"""Every benchmark by name."""


@dataclass(frozen=True)
class Answer:
    """What a table says of one architecture on one data set; accuracies in percent.

    Attributes:
        dataset: its name.
        accuracy: test accuracy.
        rank: 1 + the number of architectures that are better.
        of: number of architectures in the table.
        regret: the table's best accuracy minus this one.
        optimum: the best accuracy.
        optimum_cell: its architecture.
        reference: accuracy of the reference cell, or None where the table lacks it.
        transfer: whether the architecture was searched on other data than this.
    """

    dataset: str
    accuracy: float
    rank: int
    of: int
    regret: float
    optimum: float
    optimum_cell: str
    reference: float | None
    transfer: bool


class Table:
    """A table in memory.

    Args:
        benchmark: what it is about.
        cells: architecture strings.
        accuracies: data set -> test accuracies in percent, in the order of `cells`.
    """

    def __init__(self, benchmark: Benchmark, cells: list[str], accuracies: dict[str, np.ndarray]) -> None:
        self.benchmark, self.cells, self.accuracies = benchmark, cells, accuracies
        self._row = {cell: i for i, cell in enumerate(cells)}

    def look_up(self, arch: Architecture, *, searched_on: str | None) -> list[Answer]:
        """Return what the table says of an architecture, per data set.

        Args:
            arch: the architecture.
            searched_on: name of the data it was searched on; answers for other data are marked as transfers.

        Raises:
            ConfigError: if the table is of another space or lacks the architecture.
        """
        if arch.space.name != self.benchmark.space:
            raise ConfigError(f"the table is of space {self.benchmark.space!r}, the cell of {arch.space.name!r}")
        if str(arch) not in self._row:
            raise ConfigError(f"the table has no row for {arch}")
        row, reference = self._row[str(arch)], self._row.get(self.benchmark.reference[0])
        answers = []
        for dataset, values in self.accuracies.items():
            names = {dataset.lower(), *(alias.lower() for alias in self.benchmark.aliases.get(dataset, ()))}
            best = int(np.nanargmax(values))
            answers.append(
                Answer(
                    dataset=dataset,
                    accuracy=float(values[row]),
                    rank=1 + int((values > values[row]).sum()),
                    of=len(values),
                    regret=float(values[best] - values[row]),
                    optimum=float(values[best]),
                    optimum_cell=self.cells[best],
                    reference=None if reference is None else float(values[reference]),
                    transfer=(searched_on or "").lower() not in names,
                )
            )
        return answers


def read_table(spec: str) -> Table:
    """Return the table that `name=path` names, such as `nb201=nb201.parquet`.

    Raises:
        ConfigError: if the benchmark is not known.
        DataError: if the file cannot be read or lacks columns; names those expected and those there.
    """
    name, _, place = spec.partition("=")
    if name not in BENCHMARKS or not place:
        raise ConfigError(f"--benchmark takes name=path, such as nb201=nb201.parquet; got {spec!r}, name "
                          f"{nearest(name, BENCHMARKS)}")  # fmt: skip
    benchmark, path = BENCHMARKS[name], Path(place)
    if not path.is_file():
        raise DataError(f"no table at {path}")
    readers = {".parquet": _parquet, ".csv": _csv, ".npz": _npz}
    if path.suffix not in readers:
        raise DataError(f"{path}: a table is one of {', '.join(readers)}")
    columns = readers[path.suffix](path)
    there = {dataset: column for dataset, column in benchmark.columns.items() if column in columns}
    if "arch" not in columns or not there:
        raise DataError(
            f"{path}: expected a column 'arch' and at least one of {', '.join(benchmark.columns.values())}; "
            f"there are {', '.join(sorted(columns)[:12])}"
        )
    try:
        accuracies = {dataset: np.asarray(columns[column], dtype=np.float64) for dataset, column in there.items()}
    except ValueError as error:
        raise DataError(f"{path}: accuracies must be numbers ({error})") from None
    return Table(benchmark, [str(cell) for cell in columns["arch"]], accuracies)


def _parquet(path: Path) -> dict[str, Any]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: reading parquet needs pip install 'bayesarch[data]'; or save it as .csv") from None
    try:
        return dict(pyarrow.parquet.read_table(path).to_pydict())
    except Exception as error:  # pyarrow has no common base for what a broken file raises
        raise DataError(f"{path}: not a readable parquet file ({error})") from None


def _csv(path: Path) -> dict[str, Any]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: [row[key] for row in rows] for key in (rows[0] if rows else {})}


def _npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # numpy and zipfile raise errors of their own
        raise DataError(f"{path}: not a readable .npz of plain arrays ({error})") from None
