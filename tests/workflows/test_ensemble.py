"""Ensembles as a user makes them: members, who is chosen, calibration, evaluation, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

import bayesarch as ba
from bayesarch.data import DataConfig, load, split, splits_on
from bayesarch.ensembles import SELECTIONS, Mixture, fit_mixture
from bayesarch.errors import ConfigError, DeviceError, RunError
from bayesarch.functional import uncertainty as un
from bayesarch.workflows import ensemble as workflow
from bayesarch.workflows.halves import halves
from bayesarch.workflows.overview import overview
from bayesarch.workflows.rewrite import rewrite
from bayesarch.workflows.whole import RunListener
from helpers import jobs_here, split_of

SMALL = {
    "train.epochs": 2, "ensemble.reference": False, "ensemble.restart_epochs": 2, "ensemble.shared_epochs": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    sizes = {"space.channels": 4, "engine.epochs": 4, "engine.closing_epochs": 0, "method.reopen_steps": 2}
    return ba.search("digits", limit=600, set=sizes, out=tmp_path_factory.mktemp("ensemble") / "search")


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("ensemble") / "neighbours"
    given = {**SMALL, "ensemble.reference": True}
    with jobs_here():  # processes of their own are in the test that kills them
        return ba.ensemble(run, members=3, candidates="neighbours", set=given, out=out, seed=1)


def test_members_are_trainings_of_their_own_with_own_seeds(run, made):
    kept = made.folder.read_json("ensemble.json")
    assert kept["members"] == ["members/000", "members/001", "members/002"]
    assert [member.config["seed"] for member in made.members] == [1000, 1001, 1002]
    for member in made.members:
        assert member.status["state"] == "finished"
        assert sum(a != b for a, b in zip(member.architecture.picks, run.architecture.picks, strict=True)) == 1
    assert kept["distinct"] == len({m.architecture.canonical for m in made.members})
    assert kept["budget"]["epochs"] == 6
    sizes = made.data["sizes"]
    macs = sum(m.summary["macs"] for m in made.members)
    assert kept["budget"]["epoch_macs"] == macs * 2 * sizes["weights"]


def test_answers_are_the_calibrated_mixture_of_its_members(made):
    images, _ = split_of(made, "test")
    p = made.predict_proba(images)
    logits = np.stack([member.predictor().logits(images)[0] for member in made.members])
    mixture = Mixture.from_json(made.folder.read_json("ensemble.json")["mixture"])
    assert np.allclose(p, mixture(logits))
    assert p.sum(1) == pytest.approx(np.ones(len(p)))
    assert (made.predict(images) == np.array(made.data["classes"])[p.argmax(1)]).all()
    # another order of axes, the same answer
    assert np.allclose(made.predict_proba(images.transpose(0, 3, 1, 2)), p)
    assert np.allclose(made.predict_proba(images[..., 0]), p)
    with pytest.raises(ba.BayesarchError, match=r"must have shape \(n, 8, 8, 1\)"):
        made.predict_proba(images[:, :5])
    # the temperature was fitted on the half of the selection split that chose nothing
    held, held_labels = split_of(made, "selection")
    second = halves(held_labels)[1]
    z = np.stack([member.predictor().logits(held[second])[0] for member in made.members])
    again = fit_mixture(z, held_labels[second], mixture.weights, "joint")
    assert again.joint == pytest.approx(mixture.joint, rel=1e-3)


def test_the_evaluation_says_what_the_answers_are_worth(made):
    images, labels = split_of(made, "test")
    record = made.folder.read_json("evaluation.json")
    rows = {row["name"]: row for row in record["rows"]}
    assert set(rows) == {
        "ensemble", "ensemble, T each", "ensemble, T joint", "member 0", "member 1", "member 2", "plain ResNet",
        "plain ResNet, T",
    }  # fmt: skip
    p = made.predict_proba(images)
    joint = rows["ensemble, T joint"]
    assert joint["accuracy"]["value"] == pytest.approx(un.accuracy(p, labels))
    assert joint["nll"]["value"] == pytest.approx(un.nll(p, labels), rel=1e-3)
    assert joint["ece_width"]["value"] == pytest.approx(un.calibration_error(p, labels), abs=1e-3)
    for row in record["rows"]:
        for key in ("accuracy", "nll", "brier"):
            assert row[key]["low"] <= row[key]["value"] <= row[key]["high"]
    assert np.sum(record["confusion"]) == record["n"] == len(labels)
    assert np.trace(record["confusion"]) / record["n"] == pytest.approx(joint["accuracy"]["value"])
    nats = record["uncertainty"]["nats"]
    assert nats["total"]["all"] == pytest.approx(nats["aleatoric"]["all"] + nats["epistemic"]["all"])
    assert {row["kind"] for row in record["corruptions"]} >= {"fog", "gaussian_noise"}
    assert len(record["corruptions"]) == 45
    costs = {row["name"]: row for row in record["costs"]}
    assert costs["all members"]["params"] == sum(costs[f"member {i}"]["params"] for i in range(3))
    assert costs["plain ResNet"]["macs"] <= 3 * made.members[0].summary["macs"] * 1.5
    assert costs["member 0"]["macs"] == made.members[0].summary["macs"]


def test_a_folder_of_runs_is_told(run, made):
    accuracy = made.folder.read_json("evaluation.json")["rows"][0]["accuracy"]["value"]
    for place, kind, of, expected in (
        (Path(run.path).parent, "search", "bpnas in nb201", (run.summary["selection_accuracy"], "selection")),
        (Path(made.path).parent, "ensemble", "3 from neighbours", (accuracy, "test")),
        (Path(made.path) / "members", "training", "nb201", (made.members[2].summary["test"]["accuracy"], "test")),
    ):
        row = overview(place)[-1]
        assert (row["kind"], row["of"], row["data"], row["state"]) == (kind, of, "digits", "finished")
        assert (row["accuracy"], row["split"]) == expected


def test_the_page_is_whole(made):
    page = Path(made.path, "report.html").read_text()
    for marker in ('id="scores"', 'id="sets"', 'id="uncertainty"', 'id="ood"', 'id="least-sure"', 'id="cost"'):
        assert marker in page
    assert page.count('<img src="data:image/png;base64') == 12
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_pages_are_written_again_from_the_records(run, made):
    pages = {Path(made.path, "report.html"), Path(run.path, "report.html")}
    before = {page: page.read_text() for page in pages}
    for page in pages:
        page.unlink()
    assert rewrite(made.path) == [f"{made.path}/report.html"]
    assert rewrite(run.path)[0] == f"{run.path}/report.html"
    assert {page: page.read_text() for page in pages} == before
    with pytest.raises(RunError, match="bayesarch evaluate"):
        rewrite(made.members[2].path)


def test_any_other_run_can_be_evaluated_too(made):
    member = made.members[0]
    assert ba.open_run(member) is member
    record = ba.evaluate(member, device="cpu", corruptions=["fog"], severities=[2], ood="digits")
    assert [row["name"] for row in record["rows"]] == ["network", "network, T"]
    assert record["rows"][0]["accuracy"]["value"] == pytest.approx(member.summary["test"]["accuracy"])
    assert record["rows"][0]["nll"]["value"] == pytest.approx(member.summary["test"]["loss"], rel=1e-4)
    assert [(row["kind"], row["severity"]) for row in record["corruptions"]] == [("fog", 2)]
    assert 0.3 < record["ood"]["rows"][0]["auroc"] < 0.7, "digits cannot be told from digits"
    assert "Times on cpu" in Path(member.path, "evaluation.html").read_text()
    with pytest.raises(DeviceError, match="use auto, cpu, cuda"):
        ba.evaluate(member, device="gpu", corruptions=[])
    with pytest.raises(ConfigError, match="did you mean 'fog'"):
        ba.evaluate(member.path, corruptions=["fogg"])
    with pytest.raises(ConfigError, match="images are"):
        ba.evaluate(member.path, corruptions=[], ood="planted")


@pytest.mark.parametrize(
    "source", ["bpnas", "samples", "top", "nesbs-mc", pytest.param("nesbs-svgd", marks=pytest.mark.long)]
)
def test_every_source_ends_in_an_ensemble(source, run, tmp_path, fog_alone, here):
    done = ba.ensemble(run, members=2, candidates=source, set=SMALL, out=tmp_path / "a")
    assert len(done.members) == 2
    assert done.summary["source"] == source
    if source == "bpnas":
        restarts = sorted((tmp_path / "a" / "restarts").glob("*.json"))
        assert len(restarts) == 2
        opened = [json.loads(path.read_text())["choice"] for path in restarts]
        assert len(set(opened)) == 2
        for path, member in zip(restarts, sorted(done.members, key=lambda m: m.path), strict=True):
            del member
            arch = ba.Architecture.parse(json.loads(path.read_text())["architecture"])
            changed = [
                c.name for c, a, b in zip(arch.space.choices, arch.picks, run.architecture.picks, strict=True) if a != b
            ]
            assert changed in ([], [json.loads(path.read_text())["choice"]])


def test_a_pool_is_trained_and_its_best_are_taken(run, tmp_path, fog_alone, here):
    done = ba.ensemble(run, members=2, pool=4, candidates="nes-re", set={**SMALL, "ensemble.weights": "stacked"},
                       out=tmp_path / "a")  # fmt: skip
    kept = done.folder.read_json("ensemble.json")
    assert kept["candidates"] == 4
    pool = [ba.open_run(tmp_path / "a" / "members" / f"{i:03d}") for i in range(4)]
    images, labels = split_of(done, "selection")
    first = halves(labels)[0]
    p = np.stack([un.softmax(one.predictor().logits(images)[0]) for one in pool])[:, first]
    chosen = SELECTIONS["forward"](p, labels[first], 2)
    assert kept["members"] == [f"members/{i:03d}" for i in chosen.members]
    assert sum(kept["mixture"]["weights"]) == pytest.approx(1.0)


def test_a_member_that_fails_does_not_take_the_others_with_it(run, tmp_path, monkeypatch, fog_alone, here):
    original = workflow._Work._member

    def breaking(self, index, arch):
        path = original(self, index, arch)
        if index == 1:
            config = path / "config.yaml"
            config.write_text(config.read_text().replace("lr: 0.1", "lr: 1.0e+30").replace("clip: 5.0", "clip: 0.0"))
        return path

    monkeypatch.setattr(workflow._Work, "_member", breaking)
    done = ba.ensemble(run, members=3, candidates="deepens", set=SMALL, out=tmp_path / "a")
    kept = done.folder.read_json("ensemble.json")
    assert kept["failed"] == ["members/001"]
    assert kept["members"] == ["members/000", "members/002"]
    assert "training loss is nan" in (tmp_path / "a" / "log.txt").read_text()
    assert kept["mixture"]["weights"] == [0.5, 0.5]


def test_where_all_fail_that_is_said(run, tmp_path):
    with pytest.raises(RunError, match="no member could be trained: error: the training loss is"):
        ba.ensemble(run, members=2, candidates="deepens", out=tmp_path / "a",
                    set={**SMALL, "train.lr": 1e30, "train.clip": 0.0})  # fmt: skip
    assert ba.open_run(tmp_path / "a").status["state"] == "failed"


@pytest.mark.slow
def test_a_killed_ensemble_ends_with_the_same_members(run, made, tmp_path, fog_alone):
    command = [sys.executable, "-m", "bayesarch", "ensemble", run.path, "--from", "neighbours", "--members", "3"]
    command += ["--seed", "1", "--out", str(tmp_path / "broken"), "--json"]
    command += [f"--set={key}={value}" for key, value in {**SMALL, "ensemble.reference": True}.items()]
    broken = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    first = tmp_path / "broken" / "members" / "000"
    while not (first / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(broken.pid, signal.SIGKILL)
    broken.wait()
    broken.stderr.close()
    assert ba.open_run(tmp_path / "broken").status["state"] == "interrupted"
    # members of the killed parent are still at work; a resumed ensemble waits for them
    done = ba.resume(tmp_path / "broken")
    assert done.status["state"] == "finished"
    theirs = ba.open_run(tmp_path / "broken")
    assert [str(m.architecture) for m in made.members] == [str(m.architecture) for m in theirs.members]
    for a, b in zip(made.members, theirs.members, strict=True):
        one, other = (safetensors.torch.load_file(m.folder.path / "networks" / "trained.safetensors") for m in (a, b))
        assert all(one[key].equal(other[key]) for key in one)
    assert made.folder.read_json("ensemble.json")["mixture"] == theirs.folder.read_json("ensemble.json")["mixture"]
    rows = [[{k: v for k, v in row.items() if "latency" not in k} for row in r.summary["rows"]] for r in (made, theirs)]
    assert rows[0] == rows[1]
    assert ba.resume(tmp_path / "broken").summary == theirs.summary, "nothing happens to a finished one"


def test_wrong_settings_are_named_before_anything_is_written(run, made, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'nes-rs'"):
        ba.ensemble(run, candidates="nesrs", out=tmp_path / "a")
    with pytest.raises(ConfigError, match=r"(?s)2 settings are wrong.*ensemble.members.*train.epochs"):
        ba.ensemble(run, set={"ensemble.members": 0, "train.epochs": 0}, out=tmp_path / "a")
    with pytest.raises(ConfigError, match="is no search"):
        ba.ensemble(made.path, out=tmp_path / "a")
    with pytest.raises(DeviceError, match=r"train\.graphs is for cards"):
        ba.ensemble(run, members=2, device="cpu", set={"train.graphs": True}, out=tmp_path / "a")
    with pytest.raises(RunError, match="is an ensemble of networks"):
        made.network()
    assert not (tmp_path / "a").exists()


def test_evaluated_runs_are_compared_by_example(made, tmp_path):
    member = made.members[0]
    ba.evaluate(member.path, corruptions=[])
    record = ba.compare([made.path, member.path], out=tmp_path / "page.html")
    first, second = record["rows"]
    assert first["nll_difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    images, labels = split_of(made, "test")
    own, others = (un.nll(run.predict_proba(images), labels) for run in (made, member))
    assert second["nll_difference"]["value"] == pytest.approx(others - own, abs=1e-5)
    assert second["nll_difference"]["low"] <= others - own <= second["nll_difference"]["high"]
    assert (first["members"], second["members"]) == (3, 1)
    assert first["macs"] > second["macs"] == member.summary["macs"]
    assert 'id="answers"' in (tmp_path / "page.html").read_text()
    with pytest.raises(ConfigError, match="bayesarch evaluate"):
        ba.compare([made.path, made.members[1].path])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_members_on_a_ray_cluster(run, tmp_path, fog_alone):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install bayesarch[ray]")
    try:
        done = ba.ensemble(run, members=2, candidates="deepens", set=SMALL, out=tmp_path / "a", ray="local")
    finally:
        ray.shutdown()
    assert [member.status["state"] for member in done.members] == ["finished"] * 2
    here = ba.ensemble(run, members=2, candidates="deepens", set=SMALL, out=tmp_path / "b")
    assert here.summary["rows"] == done.summary["rows"], "the same members wherever they were trained"


def test_without_ray_its_absence_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install .bayesarch\[ray\]"):
        ba.ensemble(run, members=1, candidates="deepens", set=SMALL, out=tmp_path / "a", ray="local")


@pytest.mark.slow
def test_the_whole_road_goes_on_where_it_was(tmp_path, fog_alone, here):
    given = {
        "space.channels": 4, "engine.epochs": 1, "engine.closing_epochs": 0, "method.name": "gdas", "data.limit": 400,
        "ensemble.candidates": "deepens", "ensemble.members": 2, "ensemble.reference": False, "train.epochs": 1,
    }  # fmt: skip
    parts = []
    done = ba.run("digits", out=tmp_path / "a", seed=3, set=given,
                  listener=RunListener(on_part=lambda name, run: parts.append(name)))  # fmt: skip
    assert parts == ["search", "ensemble"]
    assert {row["format"] for row in done.folder.read_json("exports/exports.json")["files"]} == {
        "onnx",
        "program",
        "source",
    }
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*") if p.is_file() and p.name != "log.txt"}
    again = ba.run("digits", out=tmp_path / "a")
    assert again.summary == done.summary
    assert {p: p.stat().st_mtime_ns for p in before} == before, "nothing is done twice"
    with pytest.raises(ConfigError, match="did you mean 'ensemble'"):
        ba.run(out=tmp_path / "b", set={"ensembel.members": 2})


def test_halves_split_every_class():
    labels = np.repeat([0, 1, 2], [5, 4, 1])
    first, second = halves(labels)
    assert sorted([*first, *second]) == list(range(10))
    assert np.bincount(labels[first], minlength=3).tolist() == [3, 2, 1]
    assert np.bincount(labels[second], minlength=3).tolist() == [2, 2, 0]


def test_splits_of_members_and_evaluation_are_those_of_the_search(run, made):
    config = DataConfig(**run.config["data"])
    examples = load(config)
    searched, trained = split(examples, config), split(examples, config).for_training()
    for name in ("selection", "test"):
        assert np.array_equal(searched.indices[name], trained.indices[name])
    assert made.data["fingerprint"]["test"] == run.data["fingerprint"]["test"]
    parts = splits_on(examples, trained, ("weights",), config=config, device="cpu")
    assert len(parts["weights"]) == made.data["sizes"]["weights"]


def test_members_of_one_architecture_train_as_one_and_end_as_they_would_alone(run, tmp_path, monkeypatch, here):
    monkeypatch.setattr(workflow, "evaluate", lambda path: None)  # takes longer than the training, and is tested above
    given = {**SMALL, "train.lr": 0.01, "train.epochs": 1}
    alone, joint = (
        ba.ensemble(run, members=2, candidates="deepens", set={**given, "ensemble.stack": mode}, out=tmp_path / name)
        for name, mode in (("a", "never"), ("b", "always"))
    )
    assert "train as one" in (tmp_path / "b" / "log.txt").read_text()
    assert "train as one" not in (tmp_path / "a" / "log.txt").read_text()
    starts = [(m.folder.path / "log.txt").read_text().count("resume at epoch 0") for m in joint.members]
    assert starts == [1, 1]
    images, _ = split_of(run, "test")
    for mine, other in zip(joint.members, alone.members, strict=True):
        assert mine.config == other.config
        assert mine.status["state"] == "finished"
        assert mine.summary["params"] == other.summary["params"]
        close = mine.predictor().predict_proba(images) - other.predictor().predict_proba(images)
        assert np.abs(close).max() < 2e-3


def test_a_stack_that_fails_leaves_its_members_to_train_alone(run, tmp_path, monkeypatch, here):
    """Dropped paths cannot be stacked; asked for all the same, the members are trained one by one."""
    monkeypatch.setattr(workflow, "evaluate", lambda path: None)
    given = {**SMALL, "train.epochs": 1, "train.drop_path": 0.1, "ensemble.stack": "always"}
    made = ba.ensemble(run, members=2, candidates="deepens", set=given, out=tmp_path / "c")
    assert "dropped paths cannot be stacked" in (tmp_path / "c" / "members" / "000" / "process.txt").read_text()
    assert [member.status["state"] for member in made.members] == ["finished", "finished"]


def test_only_trainings_are_resumed_together(run, made):
    from bayesarch.workflows.search import resume_together

    with pytest.raises(RunError, match="only trainings"):
        resume_together([made.members[0].path, run.path])
    done = resume_together([member.path for member in made.members])
    assert [one.path for one in done] == [member.path for member in made.members]
