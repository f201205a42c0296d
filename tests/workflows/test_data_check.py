import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bayesarch.data import DataConfig, load
from bayesarch.errors import DataError
from bayesarch.workflows.data_check import check_data


@pytest.fixture
def clean(tmp_path):
    """train and test, two classes, 12 and 4 images each."""
    rng = np.random.default_rng(0)
    for place, n in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "set" / place / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return tmp_path / "set"


def test_a_clean_folder(clean):
    record = check_data(clean)
    assert record["usable"]
    assert record["faults"] == record["remarks"] == []
    assert record["splits"] == {"train": {"cat": 12, "dog": 12}, "test": {"cat": 4, "dog": 4}}
    assert record["sizes"] == {"32x32": 32}
    assert record["suggested"]["engine.batch_size"] == 4
    load(DataConfig(source=str(clean)))


def test_every_planted_fault_is_named(clean):
    """A truncated JPEG, a duplicate across train and test, a class with two images, a 16-bit PNG, a text file."""
    rng = np.random.default_rng(1)
    jpeg = clean / "train" / "cat" / "broken.jpg"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpeg, quality=90)
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    shutil.copy(clean / "train" / "dog" / "03.png", clean / "test" / "dog" / "copy.png")
    (clean / "train" / "owl").mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(clean / "train" / "owl" / f"{i}.png")
    deep = rng.integers(0, 65536, (32, 32), dtype=np.uint16)
    Image.fromarray(deep).save(clean / "train" / "dog" / "deep.png")
    (clean / "train" / "dog" / "notes.txt").write_text("not an image")
    record = check_data(clean)
    assert not record["usable"]
    faults = "\n".join(record["faults"])
    assert len(record["faults"]) == 5, faults
    assert f"{jpeg}: damaged image" in faults
    assert "the same image in test and train" in faults
    assert str(clean / "train" / "dog" / "03.png") in faults
    assert str(clean / "test" / "dog" / "copy.png") in faults
    assert "class 'owl' has 2 images, 3 are needed" in faults
    assert "deep.png: more than 8 bits a channel (mode I;16)" in faults
    assert "notes.txt: no image by its name" in faults
    assert record["suggested"]["data.class_weights"] == "balanced"
    # what the check calls a fault, the search refuses too
    with pytest.raises(DataError, match=r"broken\.jpg|deep\.png"):
        load(DataConfig(source=str(clean)))


def test_the_same_image_with_two_labels_and_twice_in_one(clean):
    shutil.copy(clean / "train" / "dog" / "03.png", clean / "train" / "cat" / "dog03.png")
    shutil.copy(clean / "train" / "dog" / "04.png", clean / "train" / "dog" / "again.png")
    faults = check_data(clean)["faults"]
    assert any("the same image in classes cat and dog" in line for line in faults)
    assert any(line.startswith("1 images occur more than once") for line in faults)


def test_sizes_lead_to_a_suggestion(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "p" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (240 + i, 300, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "p" / name / f"{i}.jpg")
    suggested = check_data(tmp_path / "p")["suggested"]
    assert suggested["data.image_size"] == 224
    assert suggested["space.stem_reductions"] == 3


def test_arrays_are_checked_too(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (200, 8, 8), dtype=np.uint8), (np.arange(200) % 10 == 0).astype(int)
    np.savez(tmp_path / "a.npz", x_train=x[:180], y_train=y[:180], x_test=x[170:], y_test=y[170:])
    record = check_data(tmp_path / "a.npz")
    assert sum("the same image in test and train" in line for line in record["faults"]) == 10
    assert record["remarks"] == ["unbalanced: the largest class is 9.0 times the smallest"]
    assert check_data("digits")["splits"]["train"].keys() == set("0123456789")


def test_the_command(clean, tmp_path, typed):
    assert "try: bayesarch search --data" in typed("data", "check", clean).out
    (clean / "train" / "cat" / "x.txt").write_text("x")
    assert "fault" in typed("data", "check", clean, code=1).out
    assert json.loads(typed("data", "check", clean, "--json", code=1).out)["usable"] is False
    none = subprocess.run(
        [sys.executable, "-m", "bayesarch", "data", "check", str(tmp_path / "nothing")], capture_output=True, text=True
    )
    assert none.returncode == 2
    assert "no data set, file or folder" in none.stderr
