import numpy as np
import pytest
import torch
from PIL import Image

from bayesarch.data import DATASETS, DataConfig, Feeder, as_examples, load, split, splits_on
from bayesarch.errors import DataError
from bayesarch.testing import check_dataset
from pretended import pretended_card

CPU = torch.device("cpu")


@pytest.mark.parametrize("source", DATASETS)
def test_contract(source):
    check_dataset(source)


def test_mnist(shared_data):
    config = DataConfig(source=str(shared_data / "mnist.npz"), limit=6000)
    examples = load(config)
    partition = split(examples, config)
    assert partition.given_test
    assert partition.sizes["test"] == 10_000
    assert sum(partition.sizes.values()) == 16_000
    counts = np.bincount(examples.labels[partition.indices["weights"]]) / partition.sizes["weights"]
    assert np.abs(counts - np.bincount(examples.labels) / 60_000).max() < 0.002


def test_planted_margin():
    """The planted cell separates the two classes; every other class of cells is far below, by a linear read-out."""
    from sklearn.linear_model import LogisticRegression

    examples = load(DataConfig(source="planted"))
    x = examples.images.reshape(4000, 16).astype(float)
    terms = {"x0": x, "x1": x * np.roll(x, -1, 1), "x2": x * np.roll(x, -2, 1)}
    accuracy = {}
    for name in ("x0", "x1", "x2", "x0+x1", "x0+x2", "x1+x2"):
        features = sum(terms[term] for term in name.split("+"))
        model = LogisticRegression(C=10).fit(features[:3000], examples.labels[:3000])
        accuracy[name] = model.score(features[3000:], examples.labels[3000:])
    best = accuracy.pop("x0+x2")
    assert best > 0.99
    assert best - max(accuracy.values()) > 0.19


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((40, 6, 5), "auto", (1, 6, 5)),
        ((40, 6, 5, 3), "auto", (3, 6, 5)),
        ((40, 3, 6, 5), "auto", (3, 6, 5)),
        ((40, 3, 6, 3), "chw", (3, 6, 3)),
        ((40, 3, 6, 3), "hwc", (3, 3, 6)),
    ],
)
def test_layouts(shape, layout, expected):
    examples = as_examples(np.zeros(shape, np.uint8), np.arange(40) % 4, layout=layout)
    assert examples.input_shape == expected


def test_chw_and_hwc_are_the_same_images():
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    one = as_examples(images, np.arange(12) % 2)
    two = as_examples(images.transpose(0, 3, 1, 2), np.arange(12) % 2)
    assert np.array_equal(one.images, two.images)
    assert one.digest() == two.digest()


LABELS = np.arange(40) % 4
IMAGES = np.zeros((40, 6, 6), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS[:39], "40 images but 39 labels"),
        (IMAGES, np.zeros(40, int), "one class"),
        (IMAGES, LABELS - 1, r"labels must lie in 0\.\.2; got -1\.\.2"),
        (IMAGES, LABELS + 1, "no example of class 0"),
        (IMAGES, LABELS + 0.5, "whole numbers"),
        (IMAGES, np.eye(4)[LABELS], "one class per image"),
        (IMAGES[0, 0], LABELS, "must have shape"),
        (np.full((40, 6, 6), np.nan), LABELS, "40 images hold NaN"),
        (np.full((40, 6, 6), 300), LABELS, r"0\.\.255; got 300\.\.300"),
        (np.zeros((40, 3, 6, 3), np.uint8), LABELS, r"data\.layout=hwc"),
        (np.array(["a"] * 40).reshape(40, 1, 1), LABELS, "integers or floats"),
    ],
)
def test_wrong_arrays(images, labels, message):
    with pytest.raises(DataError, match=message):
        as_examples(images, labels)


def test_string_labels():
    examples = as_examples(IMAGES, np.array(["cat", "dog"] * 20))
    assert examples.classes == ("cat", "dog")
    with pytest.raises(DataError, match="training has not: fox"):
        as_examples(IMAGES, np.array(["cat", "dog"] * 20), test=(IMAGES[:2], np.array(["cat", "fox"])))


def test_class_names_bound_the_labels():
    with pytest.raises(DataError, match=r"0\.\.2; got 0\.\.3"):
        as_examples(IMAGES, LABELS, classes=("a", "b", "c"))


def test_npz_errors(tmp_path):
    path = tmp_path / "set.npz"
    for arrays, message in (
        ({"x": IMAGES}, "no labels"),
        ({"y": LABELS}, "no images"),
        ({"x": IMAGES, "y": LABELS, "x_test": IMAGES}, "belong together"),
        ({"x": IMAGES, "y": LABELS, "x_test": IMAGES[:, :5], "y_test": LABELS}, "must agree"),
        ({"x": IMAGES, "y": LABELS, "x_test": IMAGES, "y_test": LABELS + 1}, r"(test).: labels must lie in 0\.\.3"),
        ({"x": np.array([IMAGES[0], None], dtype=object), "y": LABELS}, "plain arrays"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=message):
            load(DataConfig(source=str(path)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"set\.npz"):
        load(DataConfig(source=str(path)))
    (tmp_path / "set.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"cannot read \.csv"):
        load(DataConfig(source=str(tmp_path / "set.csv")))
    with pytest.raises(DataError, match="did you mean 'digits'"):
        load(DataConfig(source="digit"))


def image_folder(path, *, side=8, mode="RGB", n=8, classes=("cat", "dog")):
    rng = np.random.default_rng(0)
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(n):
            shape = (side, side) if mode == "L" else (side, side, 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path / name / f"{i}.png")
    return path


def test_image_folder(tmp_path):
    folder = image_folder(tmp_path / "flat")
    examples = load(DataConfig(source=str(folder)))
    assert examples.input_shape == (3, 8, 8)
    assert examples.classes == ("cat", "dog")
    assert np.array_equal(examples.images[0], np.asarray(Image.open(folder / "cat" / "0.png")))
    assert load(DataConfig(source=str(image_folder(tmp_path / "grey", mode="L")))).input_shape == (1, 8, 8)
    assert load(DataConfig(source=str(folder), image_size=5)).input_shape == (3, 5, 5)
    image_folder(tmp_path / "given" / "train")
    image_folder(tmp_path / "given" / "test", n=3)
    given = load(DataConfig(source=str(tmp_path / "given")))
    assert len(given.given["test"][1]) == 6


def test_image_folder_errors(tmp_path):
    folder = image_folder(tmp_path / "sizes")
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(folder / "dog" / "wide.png")
    with pytest.raises(DataError, match=r"2 sizes.*8x8.*7x9 \(wide\.png\).*image_size"):
        load(DataConfig(source=str(folder)))
    folder = image_folder(tmp_path / "broken")
    victim = folder / "dog" / "3.png"
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(DataError, match=r"dog/3\.png"):
        load(DataConfig(source=str(folder)))
    victim.write_text("no image at all")
    with pytest.raises(DataError, match=r"dog/3\.png: cannot be read as an image"):
        load(DataConfig(source=str(folder)))
    with pytest.raises(DataError, match="one class"):
        load(DataConfig(source=str(image_folder(tmp_path / "single", classes=("cat",)))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images found"):
        load(DataConfig(source=str(tmp_path / "empty")))
    image_folder(tmp_path / "given" / "train")
    image_folder(tmp_path / "given" / "test", classes=("cat", "fox"))
    with pytest.raises(DataError, match="training has not: fox"):
        load(DataConfig(source=str(tmp_path / "given")))


def test_splits_need_enough_examples():
    labels = np.array([0] * 30 + [1] * 3)
    with pytest.raises(DataError, match="class '1' has 3 examples; at least 4"):
        split(as_examples(IMAGES[:33], labels), DataConfig())


def test_limit_is_stratified():
    labels = np.array([0] * 800 + [1] * 200)
    examples = as_examples(np.zeros((1000, 4, 4), np.uint8), labels)
    partition = split(examples, DataConfig(limit=100))
    chosen = np.concatenate(list(partition.indices.values()))
    assert len(set(chosen)) == len(chosen) == 100
    assert np.bincount(labels[chosen]).tolist() == [80, 20]


def make_split(config, n=20, side=8, channels=3, dtype=np.uint8, device=CPU):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (4 * n, side, side, channels), dtype=np.uint8).astype(dtype)
    examples = as_examples(images, np.arange(4 * n) % 2)
    partition = split(examples, config)
    data = splits_on(examples, partition, ("weights", "selection"), config=config, device=device)
    return examples, partition, data


def test_scaling_comes_from_the_weights_split_alone():
    examples, partition, data = make_split(DataConfig(crop=0))
    raw, labels = partition.take(examples, "weights")
    mean, std = raw.mean((0, 1, 2)), raw.std((0, 1, 2))
    index = torch.arange(len(labels))
    batch = data["weights"].plain(index)
    expected = ((raw - mean) / std).transpose(0, 3, 1, 2)
    assert np.allclose(batch.images.numpy(), expected, atol=1e-5)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    other, _ = partition.take(examples, "selection")
    first = data["selection"].plain(torch.arange(4)).images.numpy()
    assert np.allclose(first, ((other[:4] - mean) / std).transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize("cutout", [3, 4])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.float32, 3), (np.uint8, 1)])
def test_augmentation_equals_a_naive_version_per_example(cutout, dtype, channels):
    config = DataConfig(crop=2, flip=True, cutout=cutout, normalise=False)
    _, _, data = make_split(config, dtype=dtype, channels=channels)
    part, side = data["weights"], 8
    index = torch.arange(12)
    fast = part.augmented(index, generator=torch.Generator().manual_seed(5)).images
    stream = torch.Generator().manual_seed(5)
    moves = torch.randint(0, 5, (2, 12, 1), generator=stream)
    mirror = torch.rand((12, 1), generator=stream) < 0.5
    centre = torch.rand((2, 12, 1), generator=stream)
    flipped, cut = 0, 0
    for i in range(12):
        padded = np.pad(part.plain(index).images[i].numpy(), ((0, 0), (2, 2), (2, 2)))
        top, left = int(moves[0, i]), int(moves[1, i])
        image = padded[:, top : top + side, left : left + side]
        if mirror[i]:
            image = image[:, :, ::-1]
            flipped += 1
        image = image.copy()
        row, column = int(centre[0, i] * side), int(centre[1, i] * side)
        for y in range(side):
            for x in range(side):
                if all(-(cutout // 2) <= d < cutout - cutout // 2 for d in (y - row, x - column)):
                    image[:, y, x] = 0
                    cut += 1
        assert np.allclose(fast[i].numpy(), image, atol=1e-6)
    assert 0 < flipped < 12
    assert cut > 0


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("crop", [0, 2])
def test_a_card_augments_as_the_processor_does_and_never_waits(monkeypatch, crop, dtype):
    config = DataConfig(crop=crop, flip=True, cutout=4)
    _, _, data = make_split(config, dtype=dtype)
    index = torch.arange(12)
    expected = data["weights"].augmented(index, generator=torch.Generator().manual_seed(5))
    with pretended_card(monkeypatch) as marks:
        _, _, there = make_split(config, dtype=dtype, device=torch.device("cuda", 0))
        generator = torch.Generator("cuda").manual_seed(5)
        marks.waits.clear()  # of putting the split there
        found = there["weights"].augmented(index.to("cuda", non_blocking=True), generator=generator)
        assert marks.waits == []
        assert found.images.device.type == found.labels.device.type == "cuda"
        assert torch.equal(found.images.cpu(), expected.images)
        assert torch.equal(there["weights"].plain(index.to("cuda")).images.cpu(), data["weights"].plain(index).images)
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    assert expected.images.is_contiguous(memory_format=torch.channels_last)


def test_feeder_shuffles_without_repeats_and_goes_back_to_its_place():
    _, _, data = make_split(DataConfig())

    def feeder(seed):
        order, augment = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        return Feeder(data["weights"], 7, order=order, augment=augment), order, augment

    feed, order, augment = feeder(0)
    assert feed.steps_per_pass == len(data["weights"]) // 7
    seen = []
    for _ in range(feed.steps_per_pass):
        start = feed.position % len(data["weights"])
        feed.next()
        seen += feed.permutation[start : start + 7].tolist()
    assert len(set(seen)) == len(seen)
    place, states = feed.state(), (order.get_state(), augment.get_state())
    following = [feed.next() for _ in range(6)]
    again, order2, augment2 = feeder(9)
    again.restore(place)
    order2.set_state(states[0])
    augment2.set_state(states[1])
    for batch in following:
        other = again.next()
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.labels, other.labels)


def test_a_batch_is_never_larger_than_its_split():
    _, _, data = make_split(DataConfig())
    small = Feeder(data["selection"], 64, order=torch.Generator(), augment=torch.Generator())
    assert len(small.next().labels) == len(data["selection"])


def test_in_order_gives_every_example_once():
    examples, partition, data = make_split(DataConfig())
    labels = torch.cat([batch.labels for batch in data["weights"].in_order(5)])
    assert torch.equal(labels, torch.from_numpy(partition.take(examples, "weights")[1]))
    sizes = [len(batch.labels) for batch in data["weights"].in_order(30)]
    assert sum(sizes) == len(data["weights"])
    assert max(sizes) - min(sizes) <= 1


def test_splits_that_are_not_named_are_not_there():
    _, _, data = make_split(DataConfig())
    assert set(data) == {"weights", "selection"}


def test_fractions_are_checked():
    with pytest.raises(ValueError, match="sum to 1"):
        DataConfig(fractions=(0.5, 0.5, 0.1, 0.1))
