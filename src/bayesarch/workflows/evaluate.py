"""`evaluate`: what a run's answers are worth on the test split, and when the images are no longer what they were.

Everything is of the test split unless it says otherwise; temperatures and conformal thresholds come from the
calibration half of the selection split, which neither trained nor chose anything. Intervals are 90 %, over resampled
examples.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayesarch.data import DataConfig, Examples, load, split, splits_on
from bayesarch.data.corruptions import CORRUPTIONS, STANDARD, corrupt
from bayesarch.engine import resolve_device
from bayesarch.ensembles import Mixture, fit_mixture
from bayesarch.errors import ConfigError, DataError, nearest
from bayesarch.functional import uncertainty as un
from bayesarch.nets import network_cost
from bayesarch.report import write_ensemble_report
from bayesarch.runs import write_arrays
from bayesarch.workflows.halves import halves
from bayesarch.workflows.latency import image_latency
from bayesarch.workflows.predictor import Predictor
from bayesarch.workflows.run import Run, open_run
from bayesarch.workflows.summary import edge_base
from bayesarch.workflows.worth import BINS, MEASURES, conformal, curves, differences, least_sure, score_row, uncertainty

__all__ = ["evaluate"]

SHIFTED = 1000
"""Test images at most that corruptions are tried on."""


def evaluate(
    run: str | os.PathLike[str] | Run,
    data: Examples | None = None,
    *,
    ood: str | None = None,
    corruptions: Sequence[str] = STANDARD,
    severities: Sequence[int] = (1, 3, 5),
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Score a finished run's network, or its ensemble, on the test split; write evaluation.json and the report.

    Args:
        run: an ensemble, a training, or a search (the weights that were inherited).
        data: the examples, where the run was given arrays.
        ood: other data, as `search` takes them, of the same shape of image: can they be told from the test images?
            None: test images with their pixels shuffled, which is an easy case.
        corruptions: kinds of corruption; none: skipped.
        severities: 1 to 5.
        seed: decides bootstraps, corruptions and randomised sets.
        device: where the networks answer, and are timed; None: a card where there is one.

    Raises:
        ConfigError: for an unknown corruption, or other data of another shape.
        DeviceError: if the device is not there.
        RunError: if the run is not finished.
    """
    run, on = open_run(run), resolve_device(device or "auto")
    unknown = [kind for kind in corruptions if kind not in CORRUPTIONS]
    if unknown:
        raise ConfigError(f"no corruption {unknown[0]!r}, {nearest(unknown[0], CORRUPTIONS)}")
    config = DataConfig(**run.config["data"])
    examples = data if data is not None else load(config)
    partition = split(examples, config)
    if not run.is_search:
        partition = partition.for_training()
    splits = splits_on(examples, partition, ("selection", "test"), config=config, device=on)
    predictor = run.predictor().to(on)
    logits, y = predictor.logits_on(splits["test"])
    held, held_y = predictor.logits_on(splits["selection"])
    calibration = halves(held_y)[1]
    held, held_y = held[:, calibration], held_y[calibration]
    answers = _answers(predictor.mixture.weights, logits, held, held_y)
    if len(logits) > 1:
        answers |= {f"member {i}": p for i, p in enumerate(un.softmax(logits))}
    reference = _reference(run)
    if reference is not None:
        z, held_z = (reference.to(on).logits_on(splits[name])[0] for name in ("test", "selection"))
        answers["plain ResNet"] = un.softmax(z[0])
        answers["plain ResNet, T"] = fit_mixture(held_z[:, calibration], held_y, (1.0,), "joint")(z)
    rows = [score_row(name, p, y, seed) for name, p in answers.items()]
    final = predictor.mixture(logits)
    images, _ = partition.take(examples, "test")
    record = {
        "members": [
            {
                "path": Path(member.path).name,
                "text": str(arch or type(net).__name__),
                "edges": [] if arch is None else [edge_base(arch, i) for i in range(len(arch.picks))],
            }
            for member, arch, net in zip(run.members, predictor.architectures, predictor.networks, strict=True)
        ],
        "device": str(on),
        "n": len(y),
        "n_calibration": len(held_y),
        "bins": BINS,
        "rows": rows,
        "differences": differences(answers, y, seed),
        "uncertainty": uncertainty(predictor.mixture, logits, y),
        "conformal": conformal(predictor.mixture, logits, y, held, held_y, seed),
        "ood": _ood(predictor, images, logits, ood, examples, seed),
        "corruptions": _corrupted(predictor, images, y, corruptions, severities, seed),
        "costs": _costs(run, predictor, reference),
        "classes": list(predictor.classes),
        "confusion": np.bincount(y * len(predictor.classes) + final.argmax(1), minlength=len(predictor.classes) ** 2)
        .reshape(len(predictor.classes), -1)
        .tolist(),
        "curves": curves({k: p for k, p in answers.items() if not k.startswith("member")}, y),
        "least_sure": least_sure(final, y),
    }
    if run.is_ensemble:
        kept = run.folder.read_json("ensemble.json")
        run.folder.write_json("summary.json", _summary(run, record, kept))
    write_arrays(run.folder.path / "predictions.npz", {"p": final.astype(np.float32), "y": y})
    run.folder.write_json("evaluation.json", record)
    write_page(run, images)
    return record


def write_page(run: Run, images: Any = None) -> None:
    """Write the page of an evaluated run again.

    Args:
        run: holds evaluation.json.
        images: the raw test images, for pictures of the least sure; None: loaded, where they can be.
    """
    if images is None:
        try:
            config = DataConfig(**run.config["data"])
            examples = load(config)
            images, _ = split(examples, config).take(examples, "test")
        except DataError:
            images = []
    rows = run.folder.read_json("evaluation.json")["least_sure"]
    write_ensemble_report(run.folder, _pictures(images, rows))


def _answers(
    weights: Sequence[float], logits: np.ndarray, held: np.ndarray, held_y: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the probabilities of each way to answer: before any temperature, and after each kind."""
    many = len(logits) > 1
    name = "ensemble" if many else "network"
    made = {name: Mixture(tuple(weights), (1.0,) * len(logits))(logits)}
    if many:
        made[f"{name}, T each"] = fit_mixture(held, held_y, weights, "single")(logits)
    made[f"{name}, T joint" if many else f"{name}, T"] = fit_mixture(held, held_y, weights, "joint")(logits)
    return made


def _ood(
    predictor: Predictor, images: Any, logits: np.ndarray, ood: str | None, examples: Examples, seed: int
) -> dict[str, Any] | None:
    """Return how well uncertainty tells other images from test images; None where images stay on disk.

    Raises:
        ConfigError: if the other images have another shape.
    """
    if ood is None:
        if not isinstance(images, np.ndarray):
            return None
        rng = np.random.default_rng(seed)
        flat = images.reshape(len(images), -1, images.shape[-1])
        if flat.shape[1] == 1:
            strange, name = rng.permuted(flat, axis=0), "test rows, every column shuffled by itself"
        else:
            strange = np.stack([one[rng.permutation(len(one))] for one in flat])
            name = "test images with their pixels shuffled"
        strange = strange.reshape(images.shape)
    else:
        other = load(DataConfig(source=ood))
        if other.input_shape != examples.input_shape:
            raise ConfigError(f"--ood {ood}: images are {other.input_shape}, the run's are {examples.input_shape}")
        strange, name = other.given.get("test", (other.images, None))[0], Path(ood).name
        strange = strange[: len(images)]
    theirs = predictor.logits(np.asarray(strange))
    rows = []
    for by in ("total", "epistemic"):
        if by == "epistemic" and len(logits) == 1:
            continue
        index = {"total": 0, "epistemic": 2}[by]
        ours, strange_scores = (
            un.split_uncertainty(predictor.mixture.members(z), predictor.mixture.weights)[index]
            for z in (logits, theirs)
        )
        rows.append(
            {
                "by": f"{by} uncertainty",
                "auroc": un.auroc(ours, strange_scores),
                "aupr": un.average_precision(ours, strange_scores),
                "fpr95": un.fpr_at_tpr(ours, strange_scores),
            }
        )
    return {"name": name, "n": len(strange), "rows": rows}


def _corrupted(
    predictor: Predictor, images: Any, y: np.ndarray, kinds: Sequence[str], severities: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """Return accuracy, loss and calibration per kind and severity on at most 1,000 test images."""
    if not isinstance(images, np.ndarray) or min(images.shape[1:3]) < 4:
        return []
    rng = np.random.default_rng(seed)
    index = np.sort(rng.permutation(len(y))[:SHIFTED])
    rows = []
    for kind in kinds:
        for severity in severities:
            p = predictor.predict_proba(corrupt(images[index], kind, severity, seed=seed))
            rows.append(
                {
                    "kind": kind,
                    "severity": severity,
                    "n": len(index),
                    **{key: MEASURES[key](p, y[index]) for key in ("accuracy", "nll", "ece_width")},
                }
            )
    return rows


def _reference(run: Run) -> Predictor | None:
    """Return the plain ResNet that an ensemble was trained beside, where there is one."""
    path = run.folder.path / "reference"
    if not run.is_ensemble or not (path / "status.json").is_file():
        return None
    other = open_run(path)
    return other.predictor() if other.status.get("state") == "finished" else None


def _costs(run: Run, predictor: Predictor, reference: Predictor | None) -> list[dict[str, Any]]:
    """Return parameters, MACs, latency and size on disk of every network, and of all members together."""
    rows = []
    named = [
        (f"member {i}" if len(predictor.networks) > 1 else "network", net) for i, net in enumerate(predictor.networks)
    ]
    for name, net in [*named, *([("plain ResNet", reference.networks[0])] if reference is not None else [])]:
        cost = network_cost(net, predictor.input_shape)
        size = sum(p.numel() * p.element_size() for p in net.state_dict().values())
        rows.append(
            {"name": name, "params": cost.params, "macs": cost.macs, "bytes": size,
             "latency_ms": image_latency(net, predictor.input_shape)}
        )  # fmt: skip
    if len(named) > 1:
        members = rows[: len(named)]
        keys = ("params", "macs", "bytes", "latency_ms")
        rows.insert(len(named), {"name": "all members", **{key: sum(row[key] for row in members) for key in keys}})
    return rows


def _pictures(images: Any, rows: list[dict[str, Any]]) -> list[np.ndarray]:
    """Return the least sure images as uint8 (H, W, C), for the report."""
    try:
        chosen = [np.asarray(images[np.array([row["index"]])])[0] for row in rows]
    except (TypeError, IndexError, DataError):
        return []
    made: list[np.ndarray] = []
    for one in chosen:
        if min(one.shape[:2]) < 4:
            return []
        low, high = float(one.min()), float(one.max())
        made.append(
            one if one.dtype == np.uint8 else np.rint(255 * (one - low) / max(high - low, 1e-12)).astype(np.uint8)
        )
    return made


def _summary(run: Run, record: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """Return what the final table of an ensemble shows."""
    return {
        "source": run.config["ensemble"]["candidates"],
        "search": run.config["ensemble"]["run"],
        "members": [
            {"path": name, "architecture": str(member.architecture), "digest": member.architecture.digest}
            for name, member in zip(kept["members"], run.members, strict=True)
        ],
        "distinct": kept["distinct"],
        "candidates": kept["candidates"],
        "failed": kept["failed"],
        "budget": kept["budget"],
        "mixture": kept["mixture"],
        "n": record["n"],
        "rows": record["rows"],
        "differences": record["differences"],
        "uncertainty": record["uncertainty"],
        "conformal": record["conformal"],
        "ood": record["ood"],
        "costs": record["costs"],
        "times": {"seconds": kept["seconds"]},
        "warnings": [],
    }
