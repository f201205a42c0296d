"""`compress`: a network made smaller in rounds of cutting and training, until a limit is met or accuracy would fall.

    OUT/config.yaml, data.json, environment.json, status.json, metrics.jsonl, log.txt
    OUT/networks/dense.safetensors   the network as it came, or as it was trained first
    OUT/rounds/000.safetensors ...   what every round left, and which units it has: the path
    OUT/networks/small.safetensors   the smaller network, fine-tuned
    OUT/summary.json, report.html    before and after: cost by layer, accuracy, loss, calibration, other images

Rounds and the choice among them look at the training and selection splits; the test split is read at the end.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bayesarch.data import Examples, load, split
from bayesarch.errors import RunError
from bayesarch.runs import RunFolder, free_path
from bayesarch.workflows.compress_settings import (
    LEAST_EPOCHS,
    LEAST_STEPS,
    RECIPE,
    CompressSettings,
    settle_compression,
)
from bayesarch.workflows.compression import Compression, CompressionListener
from bayesarch.workflows.config import merge, overrides, read_config
from bayesarch.workflows.environment import environment
from bayesarch.workflows.job import data_record
from bayesarch.workflows.repeats import keep_examples
from bayesarch.workflows.run import Run, open_run

__all__ = ["CompressionListener", "compress", "continue_compression", "front"]


def compress(  # noqa: PLR0913 - the public face has one keyword per flag
    module: str | os.PathLike[str] | nn.Module,
    data: str | os.PathLike[str] | Examples | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    method: str | None = None,
    max_params: int | None = None,
    max_macs: int | None = None,
    max_latency_ms: float | None = None,
    max_drop: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    out: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    set: Sequence[str] | Mapping[str, Any] | None = None,
    listener: CompressionListener | None = None,
) -> Run:
    """Make a network smaller; its units leave for good, no masks stay. Return the folder as a run, with `network()`.

    Args:
        module: a trained module (its copy is cut), FILE.py:NAME, or the name of a network known here.
        data: as `search` takes it; default digits. Images are scaled as the data settings say; a network trained on
            images scaled otherwise has to be trained first (`weights=None`).
        weights: the network's weights; None: a module as it is, any other network is trained first.
        method: bernoulli (default), masks learned with the weights; evidence, of weights; switches, of units; or a
            baseline: magnitude, random, group-lasso.
        max_params: most parameters of the result.
        max_macs: most MACs of it for one image.
        max_latency_ms: most milliseconds of it for one image, here.
        max_drop: most accuracy on the selection split that it may lose; without any limit 0.01.
        seed: decides everything random; default 0.
        device: auto (default), cpu, cuda or cuda:N.
        out: the folder; default runs/<source>-compress-s<seed>, numbered if taken.
        limit: use only so many training examples.
        config: a YAML file or a mapping of settings: sections compress, limits, data, train.
        set: `section.field=value` pairs or a mapping of dotted names; the last word.
        listener: who is told how it goes.

    Raises:
        ConfigError: listing every wrong field, or a limit that no network can meet; nothing is written.
        RunError: if the path ends before a limit is met; says how far it came.
        NumericalError: if the network that is trained first learns nothing.
        Interrupted: when SIGINT or SIGTERM asked to stop; `resume` continues.
    """
    own = module if isinstance(module, nn.Module) else None
    wanted = {"module": None if own is not None else str(module), "weights": weights, "method": method}
    bounds = {"max_params": max_params, "max_macs": max_macs, "max_latency_ms": max_latency_ms, "max_drop": max_drop}
    source = None if data is None or isinstance(data, Examples) else str(data)
    flags: dict[str, Any] = {
        "compress": {key: str(value) for key, value in wanted.items() if value is not None},
        "limits": {key: value for key, value in bounds.items() if value is not None},
        "data": {key: value for key, value in {"source": source, "limit": limit}.items() if value is not None},
    }
    flags |= {key: value for key, value in {"seed": seed, "device": device}.items() if value is not None}
    given = read_config(config) if isinstance(config, str | os.PathLike) else dict(config or {})
    said = merge({"train": RECIPE}, given, flags, overrides(set))
    settings = settle_compression(said)
    examples = data if isinstance(data, Examples) else load(settings.data)
    if "epochs" not in (said["train"] or {}):
        n = split(examples, settings.data).for_training().sizes["weights"]
        epochs = max(LEAST_EPOCHS, -(-LEAST_STEPS // max(n // settings.train.batch_size, 1)))
        settings = settle_compression(merge(said, {"train": {"epochs": epochs}}))
    work = Compression(settings, examples, own)
    folder = RunFolder.create(Path(out) if out is not None else _free_name(settings))
    record = settings.record()
    if isinstance(data, Examples):
        record = merge(record, {"data": keep_examples(folder, examples)})
    folder.write_config(record)
    folder.write_json("data.json", data_record(examples, work.partition, settings.data))
    folder.write_json("environment.json", environment(work.device))
    return work.go(folder, listener or CompressionListener())


def continue_compression(
    run: Run,
    *,
    module: nn.Module | None = None,
    device: str | None = None,
    listener: CompressionListener | None = None,
) -> Run:
    """Continue a broken compression from the last round that was finished.

    Args:
        run: its folder.
        module: the module, where it was started on one.
        device: another device than it was started on.
        listener: who is told how it goes.

    Raises:
        RunError: if the data are no longer the same, or the module is missing.
    """
    settings = settle_compression(merge(run.config, {} if device is None else {"device": device}))
    if settings.compress.module is None and module is None:
        raise RunError(f"{run.path} is of a module given in Python: pass it to `resume` as module=")
    examples = load(settings.data)
    work = Compression(settings, examples, module)
    if run.data["fingerprint"] != data_record(examples, work.partition, settings.data)["fingerprint"]:
        raise RunError(f"the data of {run.path} have changed since it began; start a new one")
    return work.go(run.folder, listener or CompressionListener())


def front(path: str | os.PathLike[str], max_macs: Sequence[int], *, epochs: int | None = None) -> list[dict[str, Any]]:
    """Score several networks of a finished path: how much does each size cost? Writes front.json.

    For each bound, the network at which the path would have ended with that limit on MACs alone is fine-tuned and
    scored on the test split; nothing is chosen by that.

    Args:
        path: a finished compression, of a network that has a name or a file.
        max_macs: bounds on MACs for one image.
        epochs: of fine-tuning; None: as in the run.

    Returns:
        A row for the whole network and one for each bound, with layers and the difference to the whole network.

    Raises:
        RunError: if the path does not go so far, or the run is of a module given in Python.
    """
    run = open_run(path)
    settings = settle_compression(run.config)
    if settings.compress.module is None:
        raise RunError(f"{run.path} is of a module given in Python; give its file as --module FILE.py:NAME")
    work = Compression(settings, load(settings.data), None)
    work.folder, work.listener = run.folder, CompressionListener()
    rows = work.front(max_macs, epochs or settings.compress.finetune_epochs)
    run.folder.write_json("front.json", {"rows": rows})
    return rows


def _free_name(settings: CompressSettings) -> Path:
    """Return runs/<source>-compress-s<seed>, with a number behind it if that is taken."""
    stem = f"{Path(settings.data.source).stem}-compress-s{settings.seed}"
    return free_path(Path("runs") / stem)
