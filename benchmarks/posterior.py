"""Is the posterior of a search calibrated? By recurrence over independent runs, and against exact enumeration.

    python benchmarks/posterior.py recurrence --data digits --runs 20 --out benchmarks/results/posterior_digits.json
    python benchmarks/posterior.py toy --datasets 40 --out benchmarks/results/posterior_toy.json

`recurrence` runs `bayesarch search --repeats` for each method (own seeds, bootstrap of the two halves) in `--work`,
where a broken benchmark goes on, and compares each run's weights with what the other runs found: reliability diagram,
expected calibration error (ECE) over all options and over the picked ones, the temperature that would have calibrated
the weights (fitted on one half of the runs, judged on the other), and the coverage of the intervals of `--repeats`.

`toy` draws many small problems from a model whose evidence is known in closed form and compares each method's
posterior with the exact one: total variation, and how often a 90 % credible set holds the cell that made the data.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

import bayesarch as ba
from bayesarch.posteriors import calibration
from bayesarch.spaces import TOY, Architecture
from bayesarch.workflows.config import settle
from bayesarch.workflows.environment import environment

EPOCHS = 40
"""Search epochs of methods that use them all."""

ENDS_BY_ITSELF = ("bpnas", "bayesnas")
"""Methods that end when everything is decided, under the default cap."""


def settings_of(method: str, arguments: argparse.Namespace) -> dict:
    """Return what is not left at its default."""
    width = {"space.channels": arguments.channels} if arguments.channels else {}
    return width if method in ENDS_BY_ITSELF else {**width, "engine.epochs": arguments.epochs}


# --- recurrence ------------------------------------------------------------------------------------------------------


def log_weights(record: dict, space) -> list[np.ndarray]:
    """Return the logarithm of a run's weights per choice, from loss gaps where it has them (they do not underflow)."""
    if "gaps_nats" in record:
        rows = [[record["gaps_nats"][c.name][o] for o in c.options] for c in space.choices]
        return [-np.array([np.inf if v is None else v for v in row]) for row in rows]
    with np.errstate(divide="ignore"):
        return [np.log([record["weights"][c.name][o] for o in c.options]) for c in space.choices]


def tempered_tables(runs: list, temperature: float) -> np.ndarray:
    """Return every run's weights at a temperature, shape (R, G)."""
    tables = []
    for run in runs:
        record, space = run.posterior.to_json(), run.posterior.space
        if record["kind"] == "candidates":
            logs = np.log([member["weight"] for member in record["members"]])
            weights = calibration.tempered(logs, temperature)
            row = np.zeros(space.n_options)
            for (arch, _), weight in zip(run.posterior.members, weights, strict=True):
                row[list(arch.columns)] += weight
            tables.append(row)
        else:
            tables.append(np.concatenate([calibration.tempered(r, temperature) for r in log_weights(record, space)]))
    return np.array(tables)


def log_loss(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Return the mean log loss of predicting each option's share, nats; predictions are kept off 0 and 1 by 1e-6."""
    p = np.clip(predicted, 1e-6, 1 - 1e-6)
    return float(-(observed * np.log(p) + (1 - observed) * np.log(1 - p)).mean())


def judge(runs: list, *, seed: int = 0) -> dict:
    """Return everything that is said of one method's runs."""
    found = np.zeros((len(runs), runs[0].posterior.space.n_options), dtype=bool)
    for r, run in enumerate(runs):
        found[r, list(run.architecture.columns)] = True
    share, raw = calibration.others_share(found), tempered_tables(runs, 1.0)
    rng, half = np.random.default_rng(seed), len(runs) // 2
    fit, rest = slice(0, half), slice(half, None)
    grid = np.geomspace(0.1, 1e4, 61)
    losses = [log_loss(tempered_tables(runs[fit], t), calibration.others_share(found[fit])) for t in grid]
    best = float(grid[int(np.argmin(losses))])
    held, share_held = tempered_tables(runs[rest], best), calibration.others_share(found[rest])
    options = found.shape[1] / len(runs[0].posterior.space.choices)
    boot = []
    for _ in range(200):
        pick = np.unique(rng.integers(0, len(runs), len(runs)))
        if len(pick) > 2:
            boot.append(calibration.calibration_error(raw[pick], calibration.others_share(found[pick])))
    accuracies = [run.summary["selection_accuracy"] for run in runs]
    return {
        "runs": len(runs),
        "kind": runs[0].posterior.kind,
        "ece": calibration.calibration_error(raw, share),
        "ece_90_over_runs": [float(np.quantile(boot, q)) for q in (0.05, 0.95)],
        "ece_of_picked": calibration.calibration_error(raw[found], share[found]),
        "picked": {"mean_weight": float(raw[found].mean()), "mean_recurrence": float(share[found].mean())},
        "reliability": [row._asdict() for row in calibration.reliability(raw, share)],
        "reliability_of_picked": [row._asdict() for row in calibration.reliability(raw[found], share[found])],
        "log_loss": log_loss(raw, share),
        "log_loss_of_equal_weights": log_loss(np.full_like(raw, 1 / options), share),
        "tempered": {
            "temperature": best,
            "ece_on_other_half": calibration.calibration_error(held, share_held),
            "ece_untempered_on_other_half": calibration.calibration_error(raw[rest], share_held),
            "log_loss_on_other_half": log_loss(held, share_held),
        },
        "interval_coverage_at_90": calibration.predictive_coverage(found, splits=200, level=0.9, rng=rng),
        "distinct_cells": len({run.architecture for run in runs}),
        "distinct_functions": len({run.architecture.canonical for run in runs}),
        "shares": {label: float(found[:, g].mean()) for g, label in enumerate(runs[0].posterior.space.labels)},
        "selection_accuracy": {"mean": float(np.mean(accuracies)), "sd": float(np.std(accuracies, ddof=1))},
        "search_epochs": float(np.median([run.summary["search_epochs"] for run in runs])),
        "seconds": float(np.median([run.summary["times"]["seconds"] for run in runs])),
        "forward_macs": float(np.median([run.summary["forward_macs"] for run in runs])),
    }


def recurrence(arguments: argparse.Namespace) -> None:
    """Run what is not there yet, judge, write the record after every method."""
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"methods": {}}
    record["command"] = (
        f"python benchmarks/posterior.py recurrence --data {Path(arguments.data).name} "
        f"--methods {','.join(dict.fromkeys([*record['methods'], *arguments.methods.split(',')]))} "
        f"--runs {arguments.runs}"
        + (f" --limit {arguments.limit}" if arguments.limit else "")
        + (f" --channels {arguments.channels}" if arguments.channels else "")
        + f" --epochs {arguments.epochs} --out {arguments.out}"
    )
    for method in arguments.methods.split(","):
        done = record["methods"].get(method, {})
        if done.get("runs") == arguments.runs:
            continue
        out = arguments.work / f"{Path(arguments.data).stem}-{method}-{arguments.runs}"
        if (out / "status.json").exists():
            begun, now = ba.open_run(out).config["method"], settle({"method": {"name": method}}).record()["method"]
            if begun != now:
                raise SystemExit(
                    f"{out} was begun with other defaults ({begun}, now {now}); remove it or give another --work"
                )
            run = ba.resume(out, parallel=arguments.parallel)
        else:
            run = ba.search(
                arguments.data, method=method, repeats=arguments.runs, parallel=arguments.parallel, out=out,
                limit=arguments.limit, set=settings_of(method, arguments),
            )  # fmt: skip
        runs = [ba.open_run(path) for path in sorted(Path(run.path, "repeats").iterdir())]
        record["methods"][method] = judge(runs)
        record["environment"] = json.loads(Path(runs[0].path, "environment.json").read_text())
        write(arguments.out, record)
        print(
            method,
            json.dumps({k: record["methods"][method][k] for k in ("ece", "ece_of_picked", "picked")}),
            flush=True,
        )


# --- toy, exactly ----------------------------------------------------------------------------------------------------

FEATURES, EXAMPLES, NOISE = 8, 240, 10.0


def features_of(arch: Architecture, x: np.ndarray) -> np.ndarray:
    """Return the cell's output for features x, shape (n, D): the operations of the toy space have no weights."""
    ops = {"none": np.zeros_like, "skip": lambda h: h, "product": lambda h: h * np.roll(h, -1, axis=1)}
    first, direct, second = (ops[arch.option_names(p)[0]] for p in range(3))
    return direct(x) + second(first(x))


def log_evidence(phi: np.ndarray, y: np.ndarray, *, prior: float, noise: float) -> float:
    """Return log N(y; 0, noise^2 I + prior^2 phi phi^T), the evidence of Bayesian linear regression, in nats."""
    n, d = phi.shape
    inner = np.eye(d) + (prior / noise) ** 2 * phi.T @ phi
    sign, logdet = np.linalg.slogdet(inner)
    assert sign > 0
    projected = phi.T @ y
    quadratic = (y @ y - (prior / noise) ** 2 * projected @ np.linalg.solve(inner, projected)) / noise**2
    return float(-0.5 * (n * np.log(2 * np.pi * noise**2) + logdet + quadratic))


def by_function(weights: dict[Architecture, float]) -> dict[str, float]:
    """Return the mass of each class of cells that compute the same function."""
    mass: dict[str, float] = {}
    for arch, weight in weights.items():
        mass[arch.canonical] = mass.get(arch.canonical, 0.0) + weight
    return mass


def in_credible_set(mass: dict[str, float], truth: str, level: float) -> bool:
    """Return whether the smallest set of classes that holds `level` has the true one."""
    total = 0.0
    for name, weight in sorted(mass.items(), key=lambda item: -item[1]):
        if total >= level - 1e-12:
            return False
        if name == truth:
            return True
        total += weight
    return False


def toy(arguments: argparse.Namespace) -> None:
    """Draw problems, search each with every method, compare with the exact posterior."""
    cells = [Architecture(TOY, picks) for picks in TOY.all_picks()]
    rows: dict[str, list[dict]] = {
        name: [] for name in ("exact", "exact from the labels", *arguments.methods.split(","))
    }
    for index in range(arguments.datasets):
        rng = np.random.default_rng([index, 20261122])
        truth = cells[int(rng.integers(len(cells)))]
        x = rng.choice([-1.0, 1.0], size=(EXAMPLES, FEATURES))
        y = features_of(truth, x) @ rng.normal(size=FEATURES) + NOISE * rng.normal(size=EXAMPLES)
        labels = (y > 0).astype(int)
        job_data = (x[:, None, None, :].astype(np.float32), labels)
        seen = seen_by_a_search(job_data)
        exact = {}
        for name, target, noise in (("exact", y, NOISE), ("exact from the labels", 2.0 * labels - 1, 1.0)):
            prior = 1.0 if name == "exact" else 0.8 / NOISE  # E[label] is near sqrt(2/pi) mean / NOISE
            logs = [log_evidence(features_of(a, x[seen]), target[seen], prior=prior, noise=noise) for a in cells]
            exact[name] = by_function(dict(zip(cells, calibration.tempered(np.array(logs), 1.0), strict=True)))
            rows[name].append(compare(exact[name], exact["exact"], truth))
        for method in arguments.methods.split(","):
            with tempfile.TemporaryDirectory() as folder:
                epochs = 200 if method in ENDS_BY_ITSELF else 24
                run = ba.search(
                    job_data, space="toy", method=method, seed=index, out=Path(folder) / "run",
                    set={"data.layout": "chw", "engine.epochs": epochs, "data.crop": 0, "engine.batch_size": 32},
                )  # fmt: skip
                mine = by_function({arch: float(np.exp(run.posterior.log_prob(arch))) for arch in cells})
            rows[method].append(compare(mine, exact["exact from the labels"], truth))
        print(index, {k: round(v[-1]["total_variation"], 2) for k, v in rows.items()}, flush=True)
        record = {"methods": {name: summed(row) for name, row in rows.items()}, "datasets": index + 1}
        record["command"] = (
            f"python benchmarks/posterior.py toy --datasets {arguments.datasets} --methods {arguments.methods} "
            f"--out {arguments.out}"
        )
        record["problem"] = {"features": FEATURES, "examples": EXAMPLES, "noise": NOISE, "cells": len(cells)}
        record["environment"] = environment(__import__("torch").device("cpu"))
        write(arguments.out, record)


def seen_by_a_search(data: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the indices of the examples that a search learns from: the weights and the architecture half."""
    from bayesarch.workflows.job import prepare

    partition = prepare(data, space="toy", set={"data.layout": "chw"}).partition
    return np.concatenate([partition.indices["weights"], partition.indices["architecture"]])


def compare(mine: dict[str, float], exact: dict[str, float], truth: Architecture) -> dict:
    """Return total variation to the exact posterior, whether the truth is in the 90 % set, and its weight."""
    names = set(mine) | set(exact)
    return {
        "total_variation": 0.5 * sum(abs(mine.get(n, 0.0) - exact.get(n, 0.0)) for n in names),
        "covered_90": in_credible_set(mine, truth.canonical, 0.9),
        "weight_of_truth": mine.get(truth.canonical, 0.0),
        "entropy": -sum(w * np.log(w) for w in mine.values() if w > 0),
    }


def summed(rows: list[dict]) -> dict:
    """Return means over problems, with the standard error of the total variation."""
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    spread = np.std([row["total_variation"] for row in rows], ddof=1) if len(rows) > 1 else float("nan")
    return {**mean, "total_variation_se": float(spread / np.sqrt(len(rows)))}


# --- both ------------------------------------------------------------------------------------------------------------


def write(path: Path, record: dict) -> None:
    """Write the record whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    part.replace(path)


def main() -> None:
    """Read the arguments and go."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("recurrence", "toy"))
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--channels", type=int)
    parser.add_argument("--methods", default=",".join(name for name, entry in ba.METHODS.items() if not entry.channels))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--datasets", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--parallel", type=int)
    parser.add_argument("--work", type=Path, default=Path("runs/posterior"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    {"recurrence": recurrence, "toy": toy}[arguments.part](arguments)


if __name__ == "__main__":
    main()
