import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import bayesarch as ba
from bayesarch.errors import BayesarchError, CheckpointError, ConfigError, DataError, DeviceError, RunError
from bayesarch.functional import Streams
from bayesarch.methods import DrNAS
from bayesarch.spaces import TOY
from bayesarch.terminal import Progress
from bayesarch.testing import tricky_space
from bayesarch.workflows.job import prepare
from bayesarch.workflows.sample import sample

QUICK = {
    "space.channels": 4,
    "engine.epochs": 8,
    "engine.closing_epochs": 1,
    "method.alpha_lr": 0.1,
    "method.reopen_steps": 2,
}
FLAGS = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]


def quick(out, **kwargs):
    return ba.search("digits", limit=400, out=out, set=QUICK, **kwargs)


def comparable(path: Path) -> dict:
    """What two equal runs share: everything but times."""
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((path / "summary.json").read_text())
    summary.pop("times")
    return {
        "posterior": (path / "posterior.json").read_bytes(),
        "network": (path / "networks" / "found.safetensors").read_bytes(),
        "found": (path / "architectures" / "found.json").read_bytes(),
        "metrics": [{k: v for k, v in record.items() if k != "seconds"} for record in records],
        "summary": summary,
        "config": (path / "config.yaml").read_bytes(),
        "data": (path / "data.json").read_bytes(),
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return quick(tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_folder_holds_everything(finished):
    path = Path(finished.path)
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert names == {
        "config.yaml", "environment.json", "data.json", "status.json", "metrics.jsonl", "posterior.json",
        "summary.json", "architectures/found.json", "networks/found.safetensors", "checkpoints/last.safetensors",
        "report.html", "log.txt",
    }  # fmt: skip
    assert finished.status["state"] == "finished"
    assert str(path) not in (path / "posterior.json").read_text()
    assert finished.posterior.mode() == finished.architecture
    summary = finished.summary
    assert sum(summary["fired_by"].values()) == 24
    assert summary["search_epochs"] <= 8
    assert summary["edges"][0]["options"] == list(finished.architecture.option_names(0))
    assert finished.data["sizes"].keys() == {"weights", "architecture", "selection", "test"}
    environment = json.loads((path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert finished.config["space"]["cells"] == 1


def test_equal_runs_are_equal(finished, tmp_path):
    again = quick(tmp_path / "again")
    assert comparable(Path(again.path)) == comparable(Path(finished.path))
    other = quick(tmp_path / "other", seed=1)
    assert comparable(Path(other.path))["metrics"] != comparable(Path(finished.path))["metrics"]


def test_the_found_network_has_the_accuracy_that_was_reported(finished):
    job = prepare("digits", limit=400, set=QUICK)
    net, split = finished.network(), job.splits["selection"]
    assert not net.training
    batch = split.plain(torch.arange(len(split)))
    with torch.inference_mode():
        right = (net(batch.images).argmax(1) == batch.labels).float().mean()
    assert float(right) == pytest.approx(finished.summary["selection_accuracy"], abs=1e-6)
    assert sum(p.numel() for p in net.parameters()) == finished.summary["params"]


def test_a_method_is_told_of_the_task():
    job = prepare("digits", limit=400, set=QUICK)
    told = job.setting(job.supernet(Streams(0)))
    assert told.classes == 10
    assert told.n_examples == job.partition.sizes
    assert told.steps_per_epoch == told.n_examples["weights"] // told.batch_size


def test_resuming_a_finished_run_does_nothing(finished):
    before = {file: file.stat().st_mtime_ns for file in Path(finished.path).rglob("*")}
    assert ba.resume(finished.path).architecture == finished.architecture
    assert {file: file.stat().st_mtime_ns for file in Path(finished.path).rglob("*")} == before


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "bayesarch", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_records(path: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    metrics = path / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"the process ended or hung before {count} records: {process.communicate()}")


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_result(finished, tmp_path):
    """SIGKILL to a real process, twice in one run; the end equals that of the unbroken run, byte for byte."""
    path = tmp_path / "broken"
    moments = [(1, 0.0), (5, 0.013)]
    process = command("search", "--data", "digits", "--limit", 400, "--out", path, *FLAGS)
    for number, (records, pause) in enumerate(moments):
        wait_for_records(path, records, process)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has asked for it yet
        assert not (path / "posterior.json").exists()
        assert ba.open_run(path).status["state"] == "interrupted"  # though its file says running
        process.communicate()
        if number == 0:
            with pytest.raises(RunError, match="bayesarch resume"):
                _ = ba.open_run(path).posterior
        process = command("resume", path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "relative weight" in out
    assert comparable(path) == comparable(Path(finished.path))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_saves_the_place_and_says_how_to_resume(finished, tmp_path, number):
    path = tmp_path / "run"
    process = command("search", "--data", "digits", "--limit", 400, "--out", path, *FLAGS)
    wait_for_records(path, 2, process)
    with pytest.raises(RunError, match=f"still running as process {process.pid}"):
        ba.resume(path)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"bayesarch resume {path}" in err
    assert "Traceback" not in err
    assert ba.open_run(path).status["state"] == "interrupted"
    ba.resume(path)
    assert comparable(path) == comparable(Path(finished.path))


def test_resume_starts_a_run_that_has_no_checkpoint_yet(finished, tmp_path):
    from bayesarch.runs import RunFolder

    folder = RunFolder.create(tmp_path / "new")
    folder.write_config(finished.config)
    ba.resume(folder.path)
    assert comparable(folder.path) == comparable(Path(finished.path))


def test_resume_refuses_other_data(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (80, 4, 4), dtype=np.uint8), np.arange(80) % 2
    run = ba.search((images, labels), out=tmp_path / "run", set={**QUICK, "engine.epochs": 1})
    run.folder.write_status(state="interrupted")
    with pytest.raises(RunError, match="have changed"):
        ba.resume(run.path, data=(images[::-1].copy(), labels))
    assert ba.resume(run.path, data=(images, labels)).status["state"] == "finished"


def test_objects_in_place_of_names(tmp_path):
    space = tricky_space()
    method = DrNAS(space)
    run = ba.search("planted", space=space, method=method, out=tmp_path / "run", set={"engine.epochs": 1})
    assert run.posterior.space == space
    run.folder.write_status(state="interrupted")
    assert ba.resume(run.path, space=space, method=method).status["state"] == "finished"
    with pytest.raises(ConfigError, match="made for space 'tricky'"):
        ba.search("planted", space=TOY, method=method, out=tmp_path / "other")


def test_sampling(finished):
    rows = sample(finished.path, 6, seed=1)
    assert rows == sample(finished.path, 6, seed=1)
    assert len(rows) == 6
    for row in rows:
        arch = ba.Architecture.parse(row["architecture"], "nb201")
        assert row["log_weight"] == pytest.approx(finished.posterior.log_prob(arch))
        net = ba.build(arch, input_shape=(1, 8, 8), classes=10, sizes={"channels": 4, "cells": 1})
        assert row["params"] == sum(p.numel() for p in net.parameters())


def test_collapse_warnings():
    from bayesarch.workflows.summary import collapse_warnings

    def warnings(text):
        return collapse_warnings(ba.Architecture.parse(text, "nb201"))

    skips = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|nor_conv_3x3~2|"
    assert "5 of 6 active edges are skip_connect" in warnings(skips)[0]
    assert "no path" in warnings("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")[0]
    assert not warnings(
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    )


def test_flat_weights_are_called_chance():
    from bayesarch.posteriors import MeanField
    from bayesarch.spaces import TOY
    from bayesarch.workflows.summary import belief_warnings

    def said(*rows):
        return [text for text in belief_warnings(MeanField(TOY, rows)) if "chance" in text]

    even, nearly, parted = (1 / 3,) * 3, (0.34, 0.33, 0.33), (0.36, 0.32, 0.32)
    assert "picked is chance" in said(even, nearly, (1.0, 0.0, 0.0))[0]
    assert "picked is chance" in said(even, even, (0.5, 0.5, 0.0))[0]
    assert not said(even, even, parted)
    assert not said((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)), "nothing was left to decide"


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_nothing_is_written_when_something_is_wrong(tmp_path):
    target = tmp_path / "run"
    for kwargs, kind in (
        ({"method": "bpnass"}, ConfigError),
        ({"space": "nb2"}, ConfigError),
        ({"set": {"method.detla": 1}}, ConfigError),
        ({"data": tmp_path / "absent.npz"}, DataError),
        ({"data": (np.zeros((40, 4, 4), np.uint8), np.zeros(40, int))}, DataError),
        *(() if torch.cuda.is_available() else (({"device": "cuda"}, DeviceError),)),
    ):
        with pytest.raises(kind):
            ba.search(**{"data": "digits", "out": target, **kwargs})
        assert not target.exists()


def test_places_that_cannot_be_written(tmp_path, finished):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another --out"):
        ba.search("digits", out=tmp_path / "file" / "run")
    with pytest.raises(RunError, match=r"not empty.*bayesarch resume"):
        ba.search("digits", out=finished.path)


def test_a_folder_of_another_version(finished, tmp_path):
    status = tmp_path / "status.json"
    for content, message in (
        ('{"format": 99}', "run format 99, this bayesarch reads 1"),
        ("{", "damaged"),
        ("[]", "expected a record"),
    ):
        status.write_text(content)
        with pytest.raises(RunError, match=message):
            ba.open_run(tmp_path)
    with pytest.raises(RunError, match="no run folder"):
        ba.open_run(tmp_path / "absent")
    status.unlink()
    with pytest.raises(RunError, match=r"status\.json is missing"):
        ba.open_run(tmp_path)


def test_a_truncated_checkpoint(finished, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    checkpoint = copy / "checkpoints" / "last.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    ba.open_run(copy).folder.write_status(state="interrupted")
    with pytest.raises(CheckpointError, match="damaged"):
        ba.resume(copy)


def test_a_full_disk_stops_with_one_line_and_keeps_the_last_checkpoint(finished, tmp_path, monkeypatch):
    """The disk fills up (simulated) after the third flush of a checkpoint; with room again the run goes on."""
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 14:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    path = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="no space left"):
        quick(path)
    monkeypatch.undo()
    assert not list(path.rglob("*.part"))
    assert 0 < len((path / "metrics.jsonl").read_text().splitlines()) < 9
    ba.resume(path)
    assert comparable(path) == comparable(Path(finished.path))


def test_every_error_is_one_of_ours():
    for kind in (ConfigError, DataError, DeviceError, RunError, CheckpointError):
        assert issubclass(kind, BayesarchError)


@pytest.fixture(scope="module")
def mnist(shared_data, tmp_path_factory):
    """The first digits of both given sets: reading all of them takes longer than a search."""
    path = tmp_path_factory.mktemp("mnist") / "mnist.npz"
    with np.load(shared_data / "mnist.npz") as whole:
        np.savez(path, **{name: whole[name][:1000] for name in ("x_train", "y_train", "x_test", "y_test")})
    return path


SEARCHED = ("bpnas", "bayesnas", "drnas", "gdas", "random")
"""One of each kind of posterior and of step; all methods are resumed, limited and timed in tests of the engine."""


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in SEARCHED else pytest.mark.long)
        for name, entry in ba.METHODS.items()
        if not entry.channels
    ],
)
def test_every_method_ends_in_a_posterior_on_mnist(method, mnist, tmp_path):
    """A short search on real images, with given test set; what it found is a network that runs."""
    settings = {"space.channels": 4, "space.cells": 1, "engine.epochs": 2, "engine.closing_epochs": 1}
    settings |= {"method.reopen_steps": 1} if method == "bpnas" else {}
    with Progress() as progress:
        run = ba.search(
            mnist, method=method, limit=300, out=tmp_path / "run", set=settings,
            listener=progress.listener,
        )  # fmt: skip
        assert f"epoch {run.metrics[-1]['epoch']:g}  loss " in str(progress._bar.tasks[0].fields["text"])
    assert run.status["state"] == "finished"
    assert any("weights_loss" in record for record in run.metrics if record["stage"] == "search")
    assert np.isfinite(run.posterior.log_prob(run.architecture))
    assert run.posterior.entropy() <= run.posterior.space.log_size + 1e-9
    assert run.network()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert run.summary["forward_macs"] > run.summary["images"] > 0
    assert run.summary["cite"]
