import csv

import numpy as np
import pytest

import bayesarch as ba
from bayesarch.benchmarks import read_table
from bayesarch.errors import ConfigError, DataError
from bayesarch.spaces import NB201, TOY, Architecture
from bayesarch.workflows.lookup import look_up
from helpers import jobs_here

CELLS = [
    "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|",
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    "|skip_connect~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
]
COLUMNS = {"arch": CELLS, "c10_test_200": [93.0, 10.0, 10.0, 94.0], "in16_test_200": [40.0, 1.0, 2.0, 39.0]}


def written(folder, suffix):
    path = folder / f"table{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(zip(*COLUMNS.values(), strict=True))
    elif suffix == ".npz":
        np.savez(path, **{key: np.array(value) for key, value in COLUMNS.items()})
    else:
        import pandas

        pandas.DataFrame(COLUMNS).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_every_format_says_the_same(suffix, tmp_path):
    table = read_table(f"nb201={written(tmp_path, suffix)}")
    first, second = table.look_up(Architecture.parse(CELLS[0], NB201), searched_on="CIFAR-10")
    assert (first.dataset, first.accuracy, first.rank, first.of) == ("cifar10", 93.0, 2, 4)
    assert (first.regret, first.optimum, first.optimum_cell) == (1.0, 94.0, CELLS[3])
    assert first.reference == 93.0
    assert not first.transfer
    assert (second.dataset, second.rank, second.regret, second.transfer) == ("ImageNet16-120", 1, 0.0, True)
    tied = table.look_up(Architecture.parse(CELLS[1], NB201), searched_on=None)
    assert (tied[0].rank, tied[0].transfer) == (3, True), "of equals all have the better rank"


def test_the_benchmark_itself(shared_data):
    """The maxima that the data's README gives, and ranks that are a permutation with ties."""
    table = read_table(f"nb201={shared_data / 'nb201.parquet'}")
    cell = Architecture.parse(CELLS[3], NB201)
    answers = {a.dataset: a for a in table.look_up(cell, searched_on="cifar10")}
    assert len(table.cells) == 15_625
    assert [round(answers[d].optimum, 3) for d in ("cifar10", "cifar100", "ImageNet16-120")] == [94.373, 73.513, 47.311]
    assert answers["cifar10"].accuracy == pytest.approx(93.76, abs=0.01)  # the specification's anchor for cell 1462
    best = Architecture.parse(answers["cifar100"].optimum_cell, NB201)
    row = next(a for a in table.look_up(best, searched_on="cifar100") if a.dataset == "cifar100")
    assert (row.rank, row.regret, row.transfer) == (1, 0.0, False)
    # the paper prints 93.97 / 70.86 / 43.63 for its ResNet, from an earlier release of the table
    assert [round(answers[d].reference, 1) for d in ("cifar10", "cifar100", "ImageNet16-120")] == [93.9, 70.9, 44.2]


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("nb301=x.csv", ConfigError, "did you mean 'nb201'"),
        ("nb201", ConfigError, "name=path"),
        ("nb201=missing.csv", DataError, "no table at missing.csv"),
        ("nb201={folder}/bad.txt", DataError, "one of .parquet, .csv, .npz"),
        ("nb201={folder}/empty.csv", DataError, "expected a column 'arch'"),
        ("nb201={folder}/words.csv", DataError, "must be numbers"),
        ("nb201={folder}/bad.npz", DataError, "not a readable .npz"),
        ("nb201={folder}/bad.parquet", DataError, "not a readable parquet"),
    ],
)
def test_what_is_no_table(spec, error, said, tmp_path):
    (tmp_path / "bad.txt").write_text("x")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "words.csv").write_text(f"arch,c10_test_200\n{CELLS[0]},good\n")
    (tmp_path / "bad.npz").write_text("x")
    (tmp_path / "bad.parquet").write_text("x")
    with pytest.raises(error) as caught:
        read_table(spec.format(folder=tmp_path))
    assert said in str(caught.value)


def test_cells_that_the_table_has_not(tmp_path):
    table = read_table(f"nb201={written(tmp_path, '.csv')}")
    with pytest.raises(ConfigError, match="space 'nb201', the cell of 'toy'"):
        table.look_up(Architecture(TOY, ((0,), (0,), (0,))), searched_on=None)
    with pytest.raises(ConfigError, match="no row for"):
        table.look_up(Architecture.parse(CELLS[0].replace("none~1", "avg_pool_3x3~1"), NB201), searched_on=None)


def test_a_table_is_read_when_the_search_has_ended(tmp_path, monkeypatch):
    """The cell is the same with and without a table; a wrong path is said at once; the run keeps the answer."""
    settings = {"engine.epochs": 2, "engine.closing_epochs": 0, "space.channels": 4, "data.called": "cifar10"}
    cells = [str(Architecture(NB201, picks)) for picks in NB201.all_picks()]
    path = tmp_path / "all.npz"
    np.savez(path, arch=np.array(cells), c10_test_200=np.random.default_rng(0).uniform(10, 94, len(cells)))
    asked = {"method": "darts", "limit": 300, "set": settings}
    with pytest.raises(DataError, match="no table"):
        ba.search("digits", out=tmp_path / "none", benchmark="nb201=nowhere.csv", **asked)
    assert not (tmp_path / "none").exists()
    plain = ba.search("digits", out=tmp_path / "plain", **asked)
    told = ba.search("digits", out=tmp_path / "told", benchmark=f"nb201={path}", **asked)
    assert told.posterior.to_json() == plain.posterior.to_json()
    assert plain.lookup is None
    (answer,) = told.lookup["answers"]
    assert answer["dataset"] == "cifar10"
    assert not answer["transfer"]
    assert f"{answer['accuracy']:.2f}" in (tmp_path / "told" / "report.html").read_text()
    assert 'id="lookup"' not in (tmp_path / "plain" / "report.html").read_text()
    assert look_up(plain, f"nb201={path}")["answers"] == [answer]
    unfinished = ba.open_run(tmp_path / "told")
    (tmp_path / "told" / "summary.json").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        look_up(unfinished, f"nb201={path}")


def test_repeated_runs_are_looked_up_one_by_one(tmp_path):
    cells = [str(Architecture(NB201, picks)) for picks in NB201.all_picks()]
    accuracy = np.random.default_rng(0).uniform(10, 94, len(cells))
    np.savez(tmp_path / "all.npz", arch=np.array(cells), c10_test_200=accuracy)
    settings = {"engine.epochs": 1, "engine.closing_epochs": 0, "space.channels": 4, "method.candidates": 3}
    with jobs_here():
        run = ba.search(
            "digits", method="random", repeats=2, limit=300, out=tmp_path / "run", set=settings,
            benchmark=f"nb201={tmp_path / 'all.npz'}",
        )  # fmt: skip
    each = [accuracy[cells.index(row["cell"])] for row in run.summary["runs"]]
    (row,) = run.lookup["over_runs"]
    assert row["n"] == 2
    assert row["accuracy"] == pytest.approx(np.mean(each))
    assert row["regret"] == pytest.approx(accuracy.max() - np.mean(each))
    assert run.lookup["answers"][0]["transfer"], "digits are not CIFAR-10"
    assert 'id="lookup"' in (tmp_path / "run" / "report.html").read_text()
