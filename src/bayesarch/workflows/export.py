"""`export`: a network or an ensemble as a file that runs without us, checked before it gets its name.

model.onnx           one ONNX graph from raw images to probabilities; runs with onnxruntime alone
model.pt2            a torch.export program
model.py             Python text, with model.safetensors beside it; runs with torch alone
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from bayesarch.data import DataConfig, Examples, load, split
from bayesarch.errors import BayesarchError, ConfigError, RunError, nearest
from bayesarch.nets.source import source_of
from bayesarch.version import __version__
from bayesarch.workflows.answer import OUTPUTS, Answer
from bayesarch.workflows.evaluate import write_page
from bayesarch.workflows.predictor import Predictor
from bayesarch.workflows.run import Run, open_run

__all__ = ["FORMATS", "export"]

TOLERANCE = 1e-5
"""Largest difference in any probability at which a file is taken for the same."""
EXAMPLES = 64


def export(
    target: str | os.PathLike[str] | Run,
    out: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    data: Examples | None = None,
) -> list[dict[str, Any]]:
    """Write a finished run's network or ensemble in one form or all; return what was written and how well it agrees.

    Args:
        target: an ensemble, a training or a search, or its folder.
        out: the file, whose ending says the form, or a folder; default: exports/ in the run folder.
        format: onnx, program, source, or all; default: by the ending of `out`, else onnx.
        data: the examples, where the run was given arrays.

    Raises:
        ConfigError: for an unknown form, or one that needs a package that is not here.
        RunError: if the written file does not give the same probabilities; nothing is left behind.
    """
    run = open_run(target)
    forms = _forms(out, format)
    predictor = run.predictor()
    images = _real_images(run, data)
    place = run.folder.path / "exports" if out is None else Path(out)
    rows = []
    for name in forms:
        form = FORMATS[name]
        file = place if place.suffix == form.suffix else place / f"model{form.suffix}"
        rows.append(_write(form, name, file, predictor, images))
    if out is None:
        _remember(run, rows)
    return rows


class _Form:
    """A form of export: its ending, and functions that write it and that read it back as images -> probabilities."""

    def __init__(
        self,
        suffix: str,
        write: Callable[[Path, Predictor], None],
        read: Callable[[Path], Callable[[np.ndarray], np.ndarray]],
    ) -> None:
        self.suffix, self.write, self.read = suffix, write, read


def _forms(out: str | os.PathLike[str] | None, wanted: str | None) -> list[str]:
    """Return the forms asked for.

    Raises:
        ConfigError: naming the legal ones.
    """
    by_suffix = {form.suffix: name for name, form in FORMATS.items()}
    suffix = "" if out is None else Path(out).suffix
    if wanted is None:
        if suffix and suffix not in by_suffix:
            raise ConfigError(f"{out}: the ending says the form: {', '.join(by_suffix)}; or give a folder and --format")
        return [by_suffix.get(suffix, "onnx")]
    if wanted == "all":
        if suffix in by_suffix:
            raise ConfigError(f"--format all writes several files; give a folder, not {out}")
        return list(FORMATS)
    if wanted not in FORMATS:
        raise ConfigError(f"no form {wanted!r}, {nearest(wanted, [*FORMATS, 'all'])}")
    if suffix in by_suffix and by_suffix[suffix] != wanted:
        raise ConfigError(f"{out} ends like {by_suffix[suffix]}, and --format says {wanted}")
    return [wanted]


def _write(form: _Form, name: str, file: Path, predictor: Predictor, images: np.ndarray) -> dict[str, Any]:
    """Write one file beside its place, read it back, compare, and only then give it its name."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".export-", dir=file.parent))
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror}; choose another --out") from None
    try:
        part = work / file.name
        form.write(part, predictor)
        expected = predictor.predict_proba(images)
        raw = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
        try:
            run = form.read(part)
            answers = [run(raw[:1]), run(raw)]  # any number of images must do
        except Exception as error:  # whatever somebody's own code has become
            raise RunError(
                f"{name}: the file does not run ({type(error).__name__}: {error}), so nothing was written; try another "
                "--format"
            ) from error
        difference = float(max(np.abs(answers[1] - expected).max(), np.abs(answers[0] - expected[:1]).max()))
        if not difference <= TOLERANCE:
            raise RunError(
                f"{name}: the file's probabilities differ from the network's by {difference:.2g} (allowed "
                f"{TOLERANCE:g}), so nothing was written; try another --format"
            )
        written = sorted(path for path in work.iterdir() if path.name.startswith(file.stem))
        for path in written:
            path.replace(file.parent / path.name)
        size = sum((file.parent / path.name).stat().st_size for path in written)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"file": str(file), "format": name, "bytes": size, "difference": difference, "examples": len(images)}


def _real_images(run: Run, data: Examples | None) -> np.ndarray:
    """Return raw test images, shape (n, H, W, C); noise like them where the data are not at hand."""
    try:
        config = DataConfig(**run.config["data"])
        examples = data if data is not None else load(config)
        images, _ = split(examples, config).take(examples, "test")
        return np.asarray(images[:EXAMPLES])
    except (BayesarchError, TypeError):
        c, h, w = run.data["input_shape"]
        noise = np.random.default_rng(0).normal(size=(EXAMPLES, h, w, c))
        return (noise * np.array(run.data["std"]) + np.array(run.data["mean"])).astype(np.float32)


def _metadata(predictor: Predictor) -> dict[str, str]:
    """Return what a reader of the file needs to know, as text."""
    c, h, w = predictor.input_shape
    return {
        "bayesarch": __version__,
        "classes": json.dumps(list(predictor.classes)),
        "input": f"images: float32 (n, {c}, {h}, {w}), pixel values on the scale they were trained on, where they were "
        f"{_on_average(predictor)}; scaled inside",
        "mean": json.dumps(predictor.mean.tolist()),
        "std": json.dumps(predictor.std.tolist()),
        "outputs": json.dumps(OUTPUTS),
        "mixture": json.dumps(predictor.mixture.to_json()),
        "architectures": json.dumps([str(arch) for arch in predictor.architectures]),
    }


def _on_average(predictor: Predictor) -> str:
    """Return what pixel values were on average: whoever feeds 0..1 where 0..255 was trained on sees it."""
    return " and ".join(f"{mean:.3g}" for mean in predictor.mean.tolist()) + " on average"


def _example(predictor: Predictor) -> torch.Tensor:
    return torch.zeros(2, *predictor.input_shape)


def _write_onnx(path: Path, predictor: Predictor) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401 - needed to check what is written
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise ConfigError(f'--format onnx needs {error.name}: pip install "bayesarch[onnx]"') from None
    with _quiet():
        program = torch.onnx.export(
            Answer(predictor).eval(),
            (_example(predictor),),
            dynamo=True,
            input_names=["images"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"images": {0: torch.export.Dim("n", min=1, max=2**20)}},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in _metadata(predictor).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _read_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def _write_program(path: Path, predictor: Predictor) -> None:
    with _quiet():
        program = torch.export.export(
            Answer(predictor).eval(),
            (_example(predictor),),
            dynamic_shapes={"images": {0: torch.export.Dim("n", min=1, max=2**20)}},
        )
        torch.export.save(program, path, extra_files={"bayesarch.json": json.dumps(_metadata(predictor))})


def _read_program(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    with _quiet():
        module = torch.export.load(path).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            made: np.ndarray = module(torch.from_numpy(images))[0].numpy()
        return made

    return run


def _write_source(path: Path, predictor: Predictor) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    sources = [source_of(net, f"Member{i}") for i, net in enumerate(predictor.networks)]
    tensors = {
        f"members.{i}.{key}": value.detach().cpu().contiguous().clone()
        for i, source in enumerate(sources)
        for key, value in source.tensors.items()
    }
    environment = Environment(loader=PackageLoader("bayesarch.workflows", "."), undefined=StrictUndefined)
    text = environment.get_template("standalone.py.jinja").render(
        sources=sources,
        weights=path.with_suffix(".safetensors").name,
        name=path.name,
        classes=list(predictor.classes),
        input_shape=predictor.input_shape,
        mean=predictor.mean.tolist(),
        std=predictor.std.tolist(),
        on_average=_on_average(predictor),
        mixture={key: np.asarray(value).tolist() for key, value in predictor.mixture.to_json().items()},
        architectures=[str(arch) for arch in predictor.architectures],
        version=__version__,
    )
    path.write_text(text)
    safetensors.torch.save_file(tensors, str(path.with_suffix(".safetensors")))


def _read_source(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what the written file answers; it is run."""
    names: dict[str, Any] = {"__name__": "exported", "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec"), names)
    model = names["load"]()
    return lambda images: model.predict_proba(images)


FORMATS: dict[str, _Form] = {
    "onnx": _Form(".onnx", _write_onnx, _read_onnx),
    "program": _Form(".pt2", _write_program, _read_program),
    "source": _Form(".py", _write_source, _read_source),
}
"""Every form by name."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporters from warning about themselves, and of packages they would also like to have."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _remember(run: Run, rows: list[dict[str, Any]]) -> None:
    """Add what was written to the run's record, and to its page where there is one."""
    name = "exports/exports.json"
    known = run.folder.read_json(name)["files"] if run.folder.has(name) else []
    fresh = {row["format"] for row in rows}
    local = [{**row, "file": Path(row["file"]).name} for row in rows]
    run.folder.write_json(name, {"files": [row for row in known if row["format"] not in fresh] + local})
    if run.folder.has("evaluation.json"):
        write_page(run)
