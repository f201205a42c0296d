"""What every data set keeps."""

import numpy as np

from bayesarch.data import DATASETS, DataConfig, load, split

__all__ = ["check_dataset"]


def check_dataset(source: str) -> None:
    """Check a built-in set, file or folder: shapes, labels, splits that never overlap, the same on every load.

    Args:
        source: as `--data` takes it.

    Raises:
        AssertionError: saying what is broken.
    """
    config = DataConfig(source=source)
    examples = load(config)
    assert examples.images.ndim == 4, "images are (n, H, W, C)"
    assert examples.images.dtype in (np.uint8, np.float32), "uint8 or float32"
    assert len(examples.labels) == len(examples.images), "one label per image"
    assert set(np.unique(examples.labels)) == set(range(len(examples.classes))), "labels are 0..K-1, all present"
    assert examples.digest() == load(config).digest(), "loading twice must give the same"
    partition = split(examples, config)
    pools = [set(index) for name, index in partition.indices.items() if name not in partition.given]
    assert sum(map(len, pools)) == len(set().union(*pools)), "splits must not overlap"
    assert set().union(*pools) == set(range(len(examples.labels))), "splits must use every example"
    for name in partition.indices:
        images, labels = partition.take(examples, name)
        assert len(images) == len(labels) > 0, f"split {name} must not be empty"
        if name not in partition.given:
            assert set(np.unique(labels)) == set(np.unique(examples.labels)), f"every class must be in split {name}"
    again = split(examples, config)
    assert partition.fingerprint(examples) == again.fingerprint(examples), "splits must be reproducible"
    other = split(examples, config.model_copy(update={"split_seed": config.split_seed + 1}))
    assert other.fingerprint(examples) != again.fingerprint(examples), "another split_seed must split otherwise"
    assert source not in DATASETS or DATASETS[source].__doc__, "a built-in set says what it is"
