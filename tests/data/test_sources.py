"""CIFAR's binary files, parquet, Hugging Face, ImageNet16's pickles, given splits, images that stay on disk."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import bayesarch as ba
import pretended
from bayesarch.data import DataConfig, Feeder, FileSplit, ImageFiles, imagenet16, load, sources, split, splits_on
from bayesarch.data.files import render
from bayesarch.errors import DataError
from bayesarch.testing import check_dataset
from bayesarch.workflows.job import prepare
from pretended import pretended_card

CPU = torch.device("cpu")


@pytest.mark.parametrize("file", ["read", "not there"])
def test_digits_are_those_of_scikit_learn(file, monkeypatch):
    if file == "not there":
        monkeypatch.setattr(sources, "find_spec", lambda name: None)
    found, bunch = load(DataConfig(source="digits")), load_digits()
    assert np.array_equal(found.images[..., 0], np.rint(bunch.images * (255 / 16)))
    assert np.array_equal(found.labels, bunch.target)
    assert found.images.shape == (1797, 8, 8, 1)
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int64)


def records(path, labels, rng, *, coarse=False):
    """Write CIFAR records and return their images, (n, 32, 32, 3)."""
    planes = rng.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    head = [np.array([[label // 2]]) for label in labels] if coarse else []
    rows = [
        np.concatenate([*([head[i][0]] if coarse else []), [label], planes[i].ravel()]).astype(np.uint8)
        for i, label in enumerate(labels)
    ]
    np.concatenate(rows).tofile(path)
    return planes.transpose(0, 2, 3, 1)


def test_cifar10_binary(tmp_path):
    rng = np.random.default_rng(0)
    images = [records(tmp_path / f"data_batch_{i}.bin", np.arange(20) % 10, rng) for i in range(1, 6)]
    test = records(tmp_path / "test_batch.bin", np.arange(10), rng)
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"name{i}" for i in range(10)) + "\n\n")
    examples = load(DataConfig(source=str(tmp_path)))
    assert np.array_equal(examples.images, np.concatenate(images))
    assert examples.classes == tuple(f"name{i}" for i in range(10))
    assert np.array_equal(examples.labels, np.tile(np.arange(20) % 10, 5))
    assert np.array_equal(examples.given["test"][0], test)
    check_dataset(str(tmp_path))
    with (tmp_path / "data_batch_3.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"data_batch_3\.bin: .*no whole number of records of 3073"):
        load(DataConfig(source=str(tmp_path)))
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin is missing"):
        load(DataConfig(source=str(tmp_path)))


def test_cifar100_binary_has_fine_labels(tmp_path):
    rng = np.random.default_rng(0)
    images = records(tmp_path / "train.bin", np.arange(40) % 8, rng, coarse=True)
    records(tmp_path / "test.bin", np.arange(8), rng, coarse=True)
    examples = load(DataConfig(source=str(tmp_path)))
    assert np.array_equal(examples.labels, np.arange(40) % 8)
    assert np.array_equal(examples.images, images)


def hub_table(n, *, sizes=(8,)):
    import datasets

    rng = np.random.default_rng(n)
    pictures = [Image.fromarray(rng.integers(0, 256, (sizes[i % len(sizes)],) * 2, dtype=np.uint8)) for i in range(n)]
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    return datasets.Dataset.from_dict({"picture": pictures, "kind": [i % 2 for i in range(n)]}, features=features)


def test_parquet_with_given_splits(tmp_path):
    pytest.importorskip("datasets", reason="the data extra is not installed")
    for name, n in (("train", 40), ("test", 10), ("validation", 12)):
        hub_table(n).to_parquet(tmp_path / f"{name}.parquet")
    examples = load(DataConfig(source=str(tmp_path / "train.parquet")))
    assert examples.classes == ("cat", "dog")
    assert examples.input_shape == (1, 8, 8)
    assert np.array_equal(examples.images[3, ..., 0], np.asarray(hub_table(40)[3]["picture"]))
    assert {name: len(labels) for name, (_, labels) in examples.given.items()} == {"test": 10, "selection": 12}
    partition = split(examples, DataConfig())
    assert partition.sizes == {"weights": 20, "architecture": 20, "selection": 12, "test": 10}
    with pytest.raises(DataError, match="no column 'label'"):
        load(DataConfig(source=str(tmp_path / "train.parquet"), label_column="label"))


def test_parquet_of_several_sizes(tmp_path):
    pytest.importorskip("datasets", reason="the data extra is not installed")
    hub_table(30, sizes=(8, 9)).to_parquet(tmp_path / "set.parquet")
    with pytest.raises(DataError, match="differ in size"):
        load(DataConfig(source=str(tmp_path / "set.parquet")))
    assert load(DataConfig(source=str(tmp_path / "set.parquet"), image_size=6)).input_shape == (1, 6, 6)


def test_a_hugging_face_folder(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the data extra is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "hub").mkdir()
    hub_table(40).to_parquet(tmp_path / "hub" / "train.parquet")
    examples = load(DataConfig(source=f"hf:{tmp_path / 'hub'}"))
    assert len(examples.labels) == 40
    with pytest.raises(DataError, match="cannot be loaded"):
        load(DataConfig(source=f"hf:{tmp_path / 'nothing'}"))


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_imagenet16_is_converted_and_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    data = {i: rng.integers(0, 256, (50, 768), dtype=np.uint8) for i in (1, 2, 10)}
    for i, pixels in data.items():
        record = {"data": pixels, "labels": [(j * 7) % 150 + 1 for j in range(50)], "mean": pixels.mean(0)}
        (tmp_path / f"train_data_batch_{i}").write_bytes(pickle.dumps(record, protocol=2))
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": data[1], "labels": list(range(1, 51))}))
    arrays = imagenet16(tmp_path)
    keep = [j for j in range(50) if (j * 7) % 150 + 1 <= 120]
    assert arrays["y_train"].max() <= 119
    assert len(arrays["y_train"]) == 3 * len(keep)
    assert np.array_equal(arrays["x_train"][0], data[1][keep[0]].reshape(3, 16, 16).transpose(1, 2, 0))
    assert np.array_equal(arrays["x_train"][-1], data[10][keep[-1]].reshape(3, 16, 16).transpose(1, 2, 0)), "in order"
    for bad in (Evil(), {"data": Evil(), "labels": []}):
        (tmp_path / "val_data").write_bytes(pickle.dumps(bad))
        with pytest.raises(DataError, match=r"refused or damaged .*posix\.system, which is no array"):
            imagenet16(tmp_path)
    assert not (tmp_path / "evil").exists()
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": data[1][:, :5], "labels": [1] * 50}))
    with pytest.raises(DataError, match=r"\(n, 768\)"):
        imagenet16(tmp_path)
    (tmp_path / "val_data").unlink()
    with pytest.raises(DataError, match="expected train_data_batch_1"):
        imagenet16(tmp_path)


def test_given_validation_is_the_selection_split(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 6, 6), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "a.npz", x_train=x[:40], y_train=y[:40], x_val=x[40:52], y_val=y[40:52])
    examples = load(DataConfig(source=str(tmp_path / "a.npz")))
    partition = split(examples, DataConfig())
    assert partition.given == ("selection",)
    assert partition.sizes["selection"] == 12
    assert partition.sizes["weights"] + partition.sizes["architecture"] + partition.sizes["test"] == 40
    images, labels = partition.take(examples, "selection")
    assert np.array_equal(images[..., 0], x[40:52])
    assert np.array_equal(labels, y[40:52])
    for place, part in (("train", slice(0, 30)), ("val", slice(30, 45)), ("test", slice(45, 60))):
        for i, (image, label) in enumerate(zip(x[part], y[part], strict=True)):
            target = tmp_path / "folder" / place / f"class{label}"
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target / f"{i}.png")
    folder = split(load(DataConfig(source=str(tmp_path / "folder"))), DataConfig())
    assert folder.given == ("selection", "test")
    assert folder.sizes == {"weights": 15, "architecture": 15, "selection": 15, "test": 15}


# --- images that stay on disk ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes of photographs of different sizes; class b is brighter."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for k, name in enumerate("ab"):
        (folder / name).mkdir()
        for i in range(24):
            pixels = rng.integers(0, 120, (40 + i, 50, 3)) + 120 * k
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:02d}.png")
    return folder


def on_disk(photographs, device=CPU, **settings):
    config = DataConfig(source=str(photographs), image_size=16, loading="files", flip=True, **settings)
    examples = load(config)
    partition = split(examples, config)
    return splits_on(examples, partition, ("weights", "selection"), config=config, device=device), examples, partition


def test_files_look_like_arrays(photographs):
    _, examples, partition = on_disk(photographs)
    assert isinstance(examples.images, ImageFiles)
    assert examples.images.shape == (48, 16, 16, 3)
    assert examples.input_shape == (3, 16, 16)
    assert partition.sizes == {"weights": 20, "architecture": 20, "selection": 4, "test": 4}
    assert examples.digest() == on_disk(photographs)[1].digest()


def test_without_augmentation_the_middle_square_is_seen(photographs):
    splits, examples, partition = on_disk(photographs, workers=0, normalise=False)
    batch = next(splits["selection"].in_order(100))
    for row, index in enumerate(partition.indices["selection"]):
        with Image.open(examples.images.paths[index]) as image:
            side = min(image.size) * 224 / 256
            left, upper = (image.size[0] - side) / 2, (image.size[1] - side) / 2
            expected = image.resize((16, 16), Image.Resampling.BILINEAR, box=(left, upper, left + side, upper + side))
        assert torch.allclose(
            batch.images[row], torch.from_numpy(np.asarray(expected) / 255.0).permute(2, 0, 1).float()
        )
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_crops_cover_the_share_of_the_area_that_was_asked_for():
    from bayesarch.data.files import _box

    rng = np.random.default_rng(0)
    for _ in range(300):
        area, ratio, x, y = rng.uniform(0.25, 0.6), rng.uniform(-0.28, 0.28), rng.uniform(), rng.uniform()
        left, upper, right, lower = _box((60, 50), (area, ratio, x, y, 0.0))
        assert 0 <= left < right <= 60 + 1e-9
        assert 0 <= upper < lower <= 50 + 1e-9
        if right - left < 59.9 and lower - upper < 49.9:
            assert (right - left) * (lower - upper) / 3000 == pytest.approx(area)
            assert (right - left) / (lower - upper) == pytest.approx(np.exp(ratio))


def test_flips_mirror(photographs):
    path = str(photographs / "a" / "00.png")
    straight = render(path, "RGB", 16, (0.5, 0.1, 0.3, 0.6, 0.0))
    assert np.array_equal(render(path, "RGB", 16, (0.5, 0.1, 0.3, 0.6, 0.5)), straight[:, ::-1])


def feeder_of(split, seed=0):
    return Feeder(split, 6, order=torch.Generator().manual_seed(seed), augment=torch.Generator().manual_seed(seed + 1))


def test_a_card_gets_files_as_the_processor_does_and_never_waits(photographs, monkeypatch):
    monkeypatch.setattr(pretended, "STAGED", 1024)  # less than a batch
    words = {"workers": 0, "class_weights": "balanced"}
    expected = feeder_of(on_disk(photographs, **words)[0]["weights"])
    with pretended_card(monkeypatch) as marks:
        feeder = feeder_of(on_disk(photographs, device=torch.device("cuda", 0), **words)[0]["weights"])
        marks.waits.clear()  # of putting labels there
        found = [feeder.next() for _ in range(4)]
        assert marks.waits == []
        for there, here in zip(found, [expected.next() for _ in range(4)], strict=True):
            assert {part.device.type for part in there} == {"cuda"}
            assert all(torch.equal(mine.cpu(), own) for mine, own in zip(there, here, strict=True))


def test_batches_do_not_depend_on_workers_and_resume(photographs):
    """The same batches with none and with two processes, and from a saved place in the middle of a pass."""
    alone = feeder_of(on_disk(photographs, workers=0)[0]["weights"])
    many = feeder_of(on_disk(photographs, workers=2)[0]["weights"])
    first = [alone.next() for _ in range(8)]  # passes of three batches
    second = [many.next() for _ in range(4)]
    saved = many.state()
    second += [many.next() for _ in range(4)]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
    assert not any(torch.equal(a.images, b.images) for i, a in enumerate(first) for b in first[:i])
    order = torch.Generator().manual_seed(0)
    again = Feeder(
        on_disk(photographs, workers=0)[0]["weights"], 6, order=order, augment=torch.Generator().manual_seed(1)
    )
    for _ in range(2):
        torch.randperm(20, generator=order)  # where the order's stream stood at the saved place: two passes begun
    again.restore(saved)
    for expected in first[4:]:
        assert torch.equal(again.next().images, expected.images)


def test_a_file_that_breaks_under_way_is_named(photographs, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(photographs, folder)
    splits, _, _ = on_disk(folder, workers=0)
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"\.png: damaged image"):
        feeder_of(splits["weights"]).next()


def test_large_folders_stay_on_disk_by_themselves(photographs, monkeypatch):
    config = DataConfig(source=str(photographs), image_size=16)
    assert isinstance(load(config).images, np.ndarray)
    monkeypatch.setattr("bayesarch.data.folders.MEMORY", 48 * 16 * 16 * 3 - 1)
    assert isinstance(load(config).images, ImageFiles)
    assert isinstance(load(config.model_copy(update={"loading": "memory"})).images, np.ndarray)


def test_a_search_on_files(photographs, tmp_path):
    """The whole road, with worker processes; the classes differ in brightness, so something is learned."""
    settings = {
        "data.image_size": 16, "data.loading": "files", "data.workers": 2, "space.channels": 4, "engine.batch_size": 8,
        "engine.epochs": 6, "engine.closing_epochs": 2, "space.stem_reductions": 1,
    }  # fmt: skip
    run = ba.search(photographs, method="darts", out=tmp_path / "run", set=settings)
    assert run.summary["selection_n"] == 4
    losses = [record["weights_loss"] for record in run.metrics]
    assert losses[-1] < 0.7 * losses[0]
    job = prepare(photographs, set=settings)
    assert all(isinstance(part, FileSplit) for part in job.splits.values())
    assert Path(run.path, "report.html").exists()
