import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bayesarch as ba
from bayesarch.terminal import print_samples


def run(*arguments, check=None):
    done = subprocess.run(
        [sys.executable, "-m", "bayesarch", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    if check is not None:
        assert done.returncode == check, done.stderr
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    done = run("search", "--data", "planted", "--space", "toy", "--out", path, check=0)
    return path, done


def test_help_is_fast_and_imports_nothing_heavy():
    times = []
    for _ in range(3):
        start = time.monotonic()
        done = run("--help", check=0)
        times.append(time.monotonic() - start)
    assert all(name in done.stdout for name in ("search", "resume", "status", "show", "sample", "doctor"))
    assert min(times) < 0.5
    heavy = "{'torch', 'sklearn', 'matplotlib', 'numpy'}"
    code = f"import sys, bayesarch, bayesarch.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_searching_training_and_sampling_load_no_compiler(tmp_path):
    small = ["space.channels=4", "space.cells=1", "engine.epochs=1", "engine.closing_epochs=1", "method.reopen_steps=1"]
    sets = [word for pair in small for word in ("--set", pair)]
    code = (
        "import sys\nfrom bayesarch.cli import app\n"
        f"words = [['search', '--data', 'digits', '--limit', '200', '--out', 'run', *{sets}],\n"
        "    ['sample', 'run', '-n', '2'], ['train', 'run', '--set', 'train.epochs=1']]\n"
        "for mine in words:\n"
        "    try:\n        app(mine)\n    except SystemExit as stop:\n        assert not stop.code\n"
        "    assert not {'torch._dynamo', 'sympy'} & set(sys.modules), mine"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_final_table(finished):
    _, done = finished
    assert re.search(r"1<-0 +product", done.stdout)
    for word in (
        "relative weight",
        "entropy",
        "parameters",
        "MACs",
        "selection split",
        "report.html",
        "bayesarch sample",
    ):
        assert word in done.stdout, word
    assert "|product~0|+|skip~0|product~1|" in done.stdout
    assert "supernet" in done.stderr
    assert "at most" in done.stderr


def test_show_and_status_need_no_torch(finished):
    path, done = finished
    code = (
        "import sys\nfrom bayesarch.cli import app\n"
        f"for words in (['show', {str(path)!r}], ['status', {str(path)!r}], ['status', {str(path.parent)!r}]):\n"
        "    try:\n        app(words)\n    except SystemExit as stop:\n        assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert done.stdout.strip() in shown.stdout
    assert "finished" in shown.stdout


def test_status_of_no_run_is_that_of_the_runs_here(finished, tmp_path, typed, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    where, _, row, note = typed("status").out.splitlines()
    assert where == "1 run in runs"
    assert row.startswith("one  search, bpnas in toy  planted  finished ")
    assert "selection split" in note


def test_runs_are_written_for_tensorboard(finished, tmp_path, typed):
    shutil.copytree(finished[0], tmp_path / "one")
    said = typed("tensorboard", tmp_path).out
    count = len((tmp_path / "one" / "metrics.jsonl").read_text().splitlines())
    assert said == f"{count} records of 1 run written; see them with: tensorboard --logdir {tmp_path}\n"
    assert list((tmp_path / "one" / "tensorboard").glob("events.out.tfevents.*"))


def test_json_is_json_and_nothing_else(finished, tmp_path, typed):
    path, _ = finished
    assert json.loads(typed("status", path, "--json").out)["state"] == "finished"
    (row,) = json.loads(typed("status", path.parent, "--json").out)
    assert (row["of"], row["state"]) == ("bpnas in toy", "finished")
    shown = json.loads(typed("show", path, "--json").out)
    assert shown["posterior"]["mode"] == {"1<-0": ["product"], "2<-0": ["skip"], "2<-1": ["product"]}
    assert len(json.loads(typed("sample", path, "-n", 3, "--seed", 1, "--json").out)) == 3
    searched = run(
        "search", "--data", "planted", "--space", "toy", "--method", "darts", "--out", tmp_path / "r",
        "--set", "engine.epochs=1", "--json", check=0,
    )  # fmt: skip
    assert json.loads(searched.stdout)["method"] == "darts"
    assert searched.stderr == ""


def test_dry_run_says_the_price_and_writes_nothing(tmp_path, typed):
    done = typed("search", "--dry-run", "--out", tmp_path / "r")
    assert re.search(r"supernet [\d.]+ k parameters, [\d.]+ M MACs, about \d+ MiB of tensors\n", done.out)
    assert re.search(r"at most 85 epochs of 11 steps of \d+ ms: at most [\d.]+ (s|min|h)", done.out)
    assert not (tmp_path / "r").exists()
    assert "compiling" not in done.out
    ways = ["--set", "engine.recompute=true", "--set", "engine.parts=2", "--memory-limit", "40G"]
    ways += ["--set", "engine.own_pages=true", "--set", "engine.compile=true"]
    said = typed("search", "--dry-run", "--data", "planted", "--space", "toy", *ways).out
    assert "MiB of tensors (cells computed twice, batches in 2 parts, pages of their own for large ones)\n" in said
    assert "as options are pruned; measured without compiling, which takes minutes more" in " ".join(said.split())
    record = json.loads(typed("search", "--dry-run", "--json").out)
    assert record["steps_per_epoch"] == 11
    assert record["memory_bytes"] > 1e6


def test_doctor(typed):
    assert "ok     supernet step" in typed("doctor").out
    record = json.loads(typed("doctor", "--json").out)
    assert all(check["passed"] for check in record["checks"])


def test_sample_prints_a_table(finished, typed):
    header, *rows = typed("sample", finished[0], "-n", 2).out.splitlines()
    assert header.split() == ["log", "weight", "parameters", "MACs", "architecture"]
    assert [row.split()[-1] for row in rows] == ["|product~0|+|skip~0|product~1|"] * 2


def test_a_sampled_cell_is_printed_in_one_piece(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    cell = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|"
    print_samples([{"log_weight": -1.0, "params": 1234, "macs": 2e6, "architecture": cell}])
    _, row = capsys.readouterr().out.splitlines()
    assert row.split() == ["-1.00", "1,234", "2.00", "M", cell]


def test_show_prices_an_architecture(typed):
    text = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|"
    assert "802,426 parameters" in typed("show", text).out
    record = json.loads(typed("show", text, "--classes", 100, "--json").out)
    assert record["params"] == 808_276  # the benchmark's count for CIFAR-100
    assert record["connected"]
    lost = typed("show", "|none~0|+|none~0|none~1|", "--space", "toy", "--input-shape", "1,1,8").out
    assert "nothing reaches the output" in lost


def folder(path, sizes):
    for name in ("cat", "dog"):
        (path / name).mkdir(parents=True)
        for i, side in enumerate(sizes):
            Image.fromarray(np.full((side, side, 3), 9 * i, np.uint8)).save(path / name / f"{i}.png")
    return path


def bad_inputs(tmp_path):
    """Yield (arguments, words that the one line must hold)."""
    search = ["search", "--out", tmp_path / "run"]
    yield [*search, "--method", "bpnass"], ["method", "did you mean 'bpnas'"]
    yield [*search, "--space", "nb21"], ["space", "did you mean 'nb201'"]
    yield [*search, "--set", "method.detla=0.1"], ["method.detla", "did you mean 'delta'"]
    yield [*search, "--set", "engin.lr=0.1"], ["engin: unknown section", "did you mean 'engine'"]
    images, labels = np.zeros((40, 6, 6), np.uint8), np.arange(40) % 4
    np.savez(tmp_path / "unlabelled.npz", x=images)
    yield [*search, "--data", tmp_path / "unlabelled.npz"], ["no labels", "the file holds x"]
    np.savez(tmp_path / "range.npz", x=images, y=labels, classes=["a", "b", "c"])
    yield [*search, "--data", tmp_path / "range.npz"], ["labels must lie in 0..2"]
    np.savez(tmp_path / "one.npz", x=images, y=labels * 0)
    yield [*search, "--data", tmp_path / "one.npz"], ["one class"]
    corrupt = folder(tmp_path / "corrupt", [8] * 6)
    (corrupt / "dog" / "2.png").write_bytes(b"\x89PNG\r\n")
    yield [*search, "--data", corrupt], ["dog/2.png", "remove or replace"]
    yield [*search, "--data", folder(tmp_path / "sizes", [8] * 5 + [9])], ["2 sizes", "data.image_size"]
    yield [*search, "--data", tmp_path / "nowhere"], ["no data set, file or folder"]
    (tmp_path / "file").write_text("")
    yield ["search", "--out", tmp_path / "file" / "run"], ["cannot write"]
    yield ["show", tmp_path / "absent"], ["no run folder"]
    wrong = "|nor_conv~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    yield ["show", wrong], ["choice '1<-0' has no option 'nor_conv'", "did you mean 'nor_conv_3x3'"]
    yield ["show", wrong.replace("conv~", "conv_1x1~"), "--input-shape", "32"], ["channels,height,width"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "status.json").write_text('{"format": 0}')
    yield ["resume", tmp_path / "old"], ["run format 0"]
    yield [*search, "--config", tmp_path / "absent.yaml"], ["cannot read the configuration"]


@pytest.mark.slow
def test_bad_input_is_answered_in_one_line_with_exit_code_2(finished, tmp_path, typed):
    import torch

    cases = list(bad_inputs(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(finished[0], broken)
    checkpoint = broken / "checkpoints" / "last.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-64])
    ba.open_run(broken).folder.write_status(state="interrupted")
    cases.append((["resume", broken], ["last.safetensors is damaged", "delete it"]))
    if not torch.cuda.is_available():
        cases.append((["search", "--out", tmp_path / "run", "--device", "cuda"], ["--device cuda", "--device cpu"]))
    for arguments, words in cases:
        lines = typed(*arguments, code=2).err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert all(word in lines[0] for word in words), lines[0]
        assert not (tmp_path / "run").exists()


def test_a_wrong_name_leaves_the_process_with_its_line_and_code(tmp_path):
    done = run("search", "--out", tmp_path / "run", "--method", "bpnass", check=2)
    assert done.stderr.startswith("error: ")
    assert "did you mean 'bpnas'" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "PASSIVE 3000 False"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None False"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "PASSIVE None False"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7 False"),
    ],
)
def test_waiting_threads_look_shortly_unless_the_user_says_otherwise(given, expected, monkeypatch):
    code = (
        "import os, sys\nfrom bayesarch.cli import main\nsys.argv = ['bayesarch', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n"
        "    print(*(os.environ.get(k) for k in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')), 'torch' in sys.modules)"
    )
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == expected


def test_unknown_options_and_commands():
    assert run("serch").returncode == 2
    assert run("search", "--methd", "bpnas").returncode == 2


def test_show_prices_a_genotype_too_long_for_a_file_name(typed):
    nodes = ", ".join(f"('sep_conv_3x3', {source})" for _ in range(4) for source in (0, 1))
    genotype = f"Genotype(normal=[{nodes}], normal_concat=range(2, 6), reduce=[{nodes}], reduce_concat=range(2, 6))"
    assert len(genotype) > 255
    record = json.loads(typed("show", genotype, "--space", "darts", "--json").out)
    assert record["architecture"] == genotype
    assert record["connected"]


def test_public_names():
    assert set(ba.__all__) == {
        "Architecture", "BayesArchClassifier", "BayesarchError", "Choice", "Run", "Space", "__version__", "build",
        "compare", "compress", "DATASETS",
        "ensemble", "evaluate", "export",
        "METHODS", "open_run", "resume", "run", "search", "SPACES", "supernet_from", "train",
    }  # fmt: skip
    assert all(getattr(ba, name) is not None for name in ba.__all__)
    assert set(ba.METHODS) == {
        "bayesnas", "bpnas", "drnas", "drnas-progressive", "darts", "darts-2nd", "gdas", "nesbs", "snas", "pcdarts",
        "pgnas", "random",
    }  # fmt: skip
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ba.nothing


def test_the_version_is_that_of_the_package():
    import tomllib

    record = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert record["project"]["version"] == ba.__version__
