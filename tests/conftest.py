"""Shared fixtures. One thread per worker: two workers with two threads each spin against one another."""

import gc
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import pytest
import torch

torch.set_num_threads(1)


LONGEST = "test_documents.py"


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that no worker waits for it at the end."""
    items.sort(key=lambda item: item.path.name != LONGEST)


def pytest_collection_finish():
    """What is here now stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data, or a skip that says so."""
    folder = Path(os.environ.get("BAYESARCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set BAYESARCH_SHARED_DATA")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def typed(monkeypatch, capsys):
    """The command line in this process: arguments -> what it prints. For what is printed, not for how it starts."""
    from bayesarch.cli import main

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def run(*arguments, code=0):
        monkeypatch.setattr("sys.argv", ["bayesarch", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert (left.value.code or 0) == code, f"{arguments}\n{said.err}"
        return said

    return run
