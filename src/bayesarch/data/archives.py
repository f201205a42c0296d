"""Examples in one file or a few: .npz, CIFAR's binary files, .parquet, Hugging Face data sets; and a converter.

The pickled batches in which ImageNet16 is published are read by `imagenet16` alone, with an unpickler that makes
arrays, lists, dicts, numbers and strings and refuses anything else, and written as .npz.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesarch.data.examples import Examples, as_examples
from bayesarch.errors import DataError

if TYPE_CHECKING:
    from bayesarch.data.sources import DataConfig

__all__ = ["cifar_binary", "holds_cifar", "hugging_face", "imagenet16", "npz", "parquet"]


def npz(path: Path, config: "DataConfig") -> Examples:
    """Return the examples of an .npz file.

    `x_train`, `y_train` (or `x`, `y`), and where present `x_valid`, `y_valid` and `x_test`, `y_test`.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{path}: not a readable .npz of plain arrays ({error})") from None
    except Exception as error:  # zipfile and zlib raise errors of their own
        raise DataError(f"{path}: damaged .npz file ({error})") from None
    images = _first(arrays, ("x_train", "x", "X", "images"))
    labels = _first(arrays, ("y_train", "y", "labels", "targets"))
    if images is None or labels is None:
        missing = "images (x_train or x)" if images is None else "labels (y_train or y)"
        raise DataError(f"{path}: no {missing}; the file holds {', '.join(sorted(arrays)) or 'nothing'}")
    names = arrays.get("classes")
    classes = tuple(str(name) for name in names) if names is not None else None
    given: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split, words in (("test", ("test",)), ("selection", ("valid", "val"))):
        x = _first(arrays, tuple(f"{letter}_{word}" for word in words for letter in "xX"))
        y = _first(arrays, tuple(f"y_{word}" for word in words))
        if (x is None) != (y is None):
            raise DataError(f"{path}: x_{words[0]} and y_{words[0]} belong together; only one is there")
        if x is not None and y is not None:
            given[split] = (x, y)
    return as_examples(images, labels, layout=config.layout, classes=classes, source=str(path), **given)


def _first(arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays), None)


# --- CIFAR's binary files --------------------------------------------------------------------------------------------

CIFAR = {
    "data_batch_1.bin": ([f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", 1, "batches.meta.txt"),
    "train.bin": (["train.bin"], "test.bin", 2, "fine_label_names.txt"),
}
"""First file -> training files, test file, label bytes of a record (the last one counts), file of class names."""


def holds_cifar(path: Path) -> bool:
    """Return whether a folder holds the binary version of CIFAR-10 or CIFAR-100."""
    return any((path / name).is_file() for name in CIFAR)


def cifar_binary(path: Path, config: "DataConfig") -> Examples:
    """Return CIFAR-10 or CIFAR-100 (fine labels) from the official binary version.

    Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; a record is one label byte
    (two for CIFAR-100, coarse and fine) and 3,072 bytes of red, green and blue planes.

    Raises:
        DataError: if a file is missing or is not a whole number of records.
    """
    train, test, n_labels, names = next(value for name, value in CIFAR.items() if (path / name).is_file())
    classes = None
    if (path / names).is_file():
        classes = tuple(line.strip() for line in (path / names).read_text().splitlines() if line.strip())
    x, y = _records([path / name for name in train], n_labels)
    given = {"test": _records([path / test], n_labels)} if (path / test).is_file() else {}
    return as_examples(x, y, layout="hwc", classes=classes, source=str(path), **given)


def _records(paths: list[Path], n_labels: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels, size = [], [], 3072 + n_labels
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is missing; the binary version has it")
        content = np.fromfile(path, dtype=np.uint8)
        if len(content) == 0 or len(content) % size:
            raise DataError(f"{path}: {len(content)} bytes are no whole number of records of {size}; it is damaged")
        rows = content.reshape(-1, size)
        labels.append(rows[:, n_labels - 1].astype(np.int64))
        images.append(rows[:, n_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return np.concatenate(images), np.concatenate(labels)


# --- Hugging Face, parquet -------------------------------------------------------------------------------------------


def hugging_face(config: "DataConfig") -> Examples:
    """Return a Hugging Face data set, `hf:NAME` or `hf:NAME:CONFIG`; a hub name needs the network, a folder does not.

    Raises:
        DataError: if the `data` extra is missing, or the set cannot be had or has no image and class columns.
    """
    name, _, variant = config.source.removeprefix("hf:").partition(":")
    return _from_hub(lambda datasets: datasets.load_dataset(name, variant or None), config)


def parquet(path: Path, config: "DataConfig") -> Examples:
    """Return the examples of a parquet file as Hugging Face writes them.

    If it is called train.parquet, files beside it called test.parquet and validation.parquet give those splits.
    """
    files = {"train": str(path)}
    if path.stem == "train":
        files |= {s: str(path.with_name(f"{s}.parquet")) for s in ("test", "validation")
                  if path.with_name(f"{s}.parquet").is_file()}  # fmt: skip
    return _from_hub(lambda datasets: datasets.load_dataset("parquet", data_files=files), config)


def _from_hub(load: Callable[[Any], Any], config: "DataConfig") -> Examples:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{config.source}: needs pip install 'bayesarch[data]'") from None
    try:
        loaded = load(datasets)
    except Exception as error:  # the library raises errors of many kinds
        raise DataError(f"{config.source}: cannot be loaded ({str(error).splitlines()[0]})") from None
    if "train" not in loaded:
        raise DataError(f"{config.source}: no split called train; it has {', '.join(loaded)}")
    features = loaded["train"].features
    image = config.image_column or _only(features, datasets.Image, ("image", "img"), config.source, "image_column")
    label = config.label_column or _only(
        features, datasets.ClassLabel, ("label", "fine_label"), config.source, "label_column"
    )
    for column in (image, label):
        if column not in features:
            raise DataError(f"{config.source}: no column {column!r}; it has {', '.join(features)}")
    names = getattr(features[label], "names", None)
    parts = {name: _columns(part, image, label, config) for name, part in loaded.items()}
    given = {to: parts[name] for to, name in (("test", "test"), ("selection", "validation")) if name in parts}
    x, y = parts["train"]
    return as_examples(
        x, y, layout="hwc", classes=None if names is None else tuple(names), source=config.source, **given
    )


def _only(features: Any, kind: type, usual: tuple[str, ...], source: str, setting: str) -> str:
    """Return the only column of a kind, or one with a usual name."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    found = found if len(found) == 1 else [name for name in usual if name in features]
    if not found:
        raise DataError(f"{source}: say which column it is, --set data.{setting}=NAME; there are {', '.join(features)}")
    return found[0]


def _columns(part: Any, image: str, label: str, config: "DataConfig") -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    arrays = []
    for row in part.select_columns([image]):
        picture = row[image]
        if isinstance(picture, dict):  # bytes without the Image feature
            picture = Image.open(io.BytesIO(picture["bytes"]))
        picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
        if config.image_size is not None:
            picture = picture.resize((config.image_size, config.image_size), Image.Resampling.BILINEAR)
        arrays.append(np.asarray(picture, dtype=np.uint8))
    if len({array.shape for array in arrays}) > 1:
        raise DataError(
            f"{config.source}: images differ in size or colour; say --set data.image_size=32 to resize them"
        )
    stacked = np.stack(arrays)
    return stacked[..., None] if stacked.ndim == 3 else stacked, np.asarray(part[label])


# --- ImageNet16 ------------------------------------------------------------------------------------------------------


class _ArraysOnly(pickle.Unpickler):
    """Makes arrays and plain containers; anything else in the file is refused, so nothing in it can run."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return super().find_class(module, name)


def imagenet16(folder: Path, *, classes: int = 120) -> dict[str, np.ndarray]:
    """Return ImageNet16 as arrays for an .npz: the first classes only (120 as in NAS-Bench-201), labels from 0.

    Reference: Chrabaszcz, Loshchilov and Hutter, "A Downsampled Variant of ImageNet as an Alternative to the CIFAR
    datasets", 2017. The official batches are pickles of a dict with `data` (n, 768), planes of red, green and blue, and
    `labels` from 1.

    Args:
        folder: holds train_data_batch_1 .. 10 and val_data.
        classes: labels above are left out.

    Raises:
        DataError: if a file is missing, damaged, or holds anything but arrays and plain containers.
    """
    train = sorted(folder.glob("train_data_batch_*"), key=lambda p: int(p.name.rpartition("_")[2]))
    if not train or not (folder / "val_data").is_file():
        raise DataError(f"{folder}: expected train_data_batch_1 .. train_data_batch_10 and val_data")
    parts = {"train": [_batch(p, classes) for p in train], "test": [_batch(folder / "val_data", classes)]}
    arrays = {}
    for name, batches in parts.items():
        arrays[f"x_{name}"] = np.concatenate([x for x, _ in batches])
        arrays[f"y_{name}"] = np.concatenate([y for _, y in batches])
    return arrays


def _batch(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            record = _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise DataError(f"{path}: refused or damaged ({error})") from None
    if not isinstance(record, dict) or "data" not in record or "labels" not in record:
        raise DataError(f"{path}: expected a dict with data and labels")
    data, labels = np.asarray(record["data"], dtype=np.uint8), np.asarray(record["labels"], dtype=np.int64)
    if data.ndim != 2 or data.shape[1] != 768 or len(data) != len(labels):
        raise DataError(f"{path}: expected data of shape (n, 768) and n labels; got {data.shape} and {labels.shape}")
    keep = labels <= classes
    return data[keep].reshape(-1, 3, 16, 16).transpose(0, 2, 3, 1), labels[keep] - 1
