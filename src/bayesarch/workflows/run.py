"""A finished or half-finished run as an object: what `search` returns and `open_run` reads back."""

import contextlib
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesarch.errors import RunError
from bayesarch.posteriors import ArchitecturePosterior
from bayesarch.posteriors import from_json as posterior_from_json
from bayesarch.runs import RunFolder
from bayesarch.spaces import SPACES, Architecture, Space

if TYPE_CHECKING:
    from torch import nn

    from bayesarch.workflows.predictor import Predictor

__all__ = ["Run", "open_run"]


class Run:
    """One run folder.

    Args:
        folder: the folder.
        space: the space, where it is not a built-in one.
    """

    def __init__(self, folder: RunFolder, space: Space | None = None) -> None:
        self.folder, self._space = folder, space

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r}, {self.status.get('state')})"

    @property
    def path(self) -> str:
        """Where it lies."""
        return str(self.folder.path)

    @property
    def status(self) -> dict[str, Any]:
        """status.json: running, interrupted, failed or finished, and how far.

        A run whose process is gone, as a kill leaves it, is interrupted, whatever its file says.
        """
        status = self.folder.read_json("status.json")
        if status.get("state") == "running" and not _alive(status.get("pid")):
            status["state"] = "interrupted"
        return status

    @property
    def is_training(self) -> bool:
        """Whether this is a training of one architecture, not a search."""
        return "train" in self.config and "architecture" in self.config

    @property
    def is_ensemble(self) -> bool:
        """Whether this is an ensemble of trained networks."""
        return "ensemble" in self.config

    @property
    def is_compression(self) -> bool:
        """Whether this is a network made smaller."""
        return "compress" in self.config

    @property
    def is_search(self) -> bool:
        """Whether this is a search, and none of the other kinds."""
        return not (self.is_training or self.is_ensemble or self.is_compression)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record per round."""
        return self.folder.read_metrics()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings in force."""
        return self.folder.read_config()

    @cached_property
    def data(self) -> dict[str, Any]:
        """Splits: sizes and fingerprint, input shape, classes."""
        return self.folder.read_json("data.json")

    @cached_property
    def _closed(self) -> Space | None:
        """The space, with its choices where they depend on the network's sizes; None: the built-in of its name."""
        space = self._space or SPACES.get(self.config.get("space", {}).get("name", ""))
        if space is None or not space.open:
            return self._space
        from bayesarch.nets import close_space, tidy_sizes

        sizes = tidy_sizes(space, {key: value for key, value in self.config["space"].items() if key != "name"})
        return close_space(space, sizes, tuple(self.data["input_shape"]), len(self.data["classes"]))

    @cached_property
    def posterior(self) -> ArchitecturePosterior:
        """The posterior over architectures.

        Raises:
            RunError: if the run is not finished.
        """
        self._need("posterior.json")
        return posterior_from_json(self.folder.read_json("posterior.json"), self._closed)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What the final table shows."""
        self._need("summary.json")
        return self.folder.read_json("summary.json")

    @property
    def lookup(self) -> dict[str, Any] | None:
        """What a benchmark's table says of the found cell; None where it was not looked up."""
        return self.folder.read_json("lookup.json") if self.folder.has("lookup.json") else None

    @property
    def best(self) -> Architecture | None:
        """The best architecture so far, at any time: after a round, what the search would find if it ended there."""
        if self.folder.has("posterior.json"):
            return self.architecture
        known = [record["best"] for record in self.metrics if "best" in record]
        space = self._closed or self.config["space"]["name"]
        return Architecture.parse(known[-1], space) if known else None

    @cached_property
    def architecture(self) -> Architecture:
        """The architecture that was found, or that is trained."""
        if self.is_training:
            return Architecture.parse(self.config["architecture"], self._closed)
        if self.folder.has("architectures/found.json"):
            return Architecture.parse(self.folder.read_json("architectures/found.json"), self._closed)
        return self.posterior.mode()

    def network(self, module: "nn.Module | None" = None) -> "nn.Module":
        """Return the network as a plain module, in eval mode: trained, or with weights inherited from the search.

        Args:
            module: the network that was made smaller, where it was given as a module in Python.
        """
        import safetensors.torch

        from bayesarch.nets import build

        if self.is_compression:
            from bayesarch.workflows.smaller import small_network

            return small_network(self, module)
        if self.is_ensemble:
            raise RunError(f"{self.path} is an ensemble of networks: take run.members, or run.predict_proba")
        name = f"networks/{'trained' if self.is_training else 'found'}.safetensors"
        self._need(name)
        sizes = {key: value for key, value in self.config["space"].items() if key != "name"}
        shape = tuple(self.data["input_shape"])
        net = build(self.architecture, input_shape=shape, classes=len(self.data["classes"]), sizes=sizes)
        net.load_state_dict(safetensors.torch.load_file(self.folder.path / name))
        return net.eval()

    @cached_property
    def members(self) -> list["Run"]:
        """The trainings that an ensemble is made of; of any other run, itself."""
        if not self.is_ensemble:
            return [self]
        self._need("ensemble.json")
        return [open_run(self.folder.path / name) for name in self.folder.read_json("ensemble.json")["members"]]

    def predictor(self) -> "Predictor":
        """Return what answers for this run: its network, or the members of an ensemble with their mixture."""
        from bayesarch.ensembles import Mixture
        from bayesarch.workflows.predictor import Predictor

        kept = self.folder.read_json("ensemble.json") if self.is_ensemble and self.members else None
        m = len(self.members)
        return Predictor(
            networks=[run.network() for run in self.members],
            mixture=Mixture((1 / m,) * m, (1.0,) * m) if kept is None else Mixture.from_json(kept["mixture"]),
            mean=np.array(self.data["mean"]),
            std=np.array(self.data["std"]),
            classes=tuple(self.data["classes"]),
            input_shape=tuple(self.data["input_shape"]),
            architectures=tuple(None if run.is_compression else run.architecture for run in self.members),
        )

    @cached_property
    def _predictor(self) -> "Predictor":
        return self.predictor()

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        """Return class probabilities of raw images, shape (n, K); images as `Predictor.prepare` takes them."""
        return self._predictor.predict_proba(images)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return class names of raw images, shape (n,)."""
        return self._predictor.predict(images)

    def _need(self, name: str) -> None:
        if not self.folder.has(name):
            state = self.status.get("state")
            if not self.is_search and state == "finished":
                kinds = {"a training of one architecture": self.is_training, "an ensemble": self.is_ensemble}
                what = next((kind for kind, fits in kinds.items() if fits), "a network made smaller")
                raise RunError(f"{self.path} is {what} and has no {name}; give the search")
            raise RunError(
                f"{self.path} is {state}, so there is no {name} yet; finish it: bayesarch resume {self.path}"
            )


def _alive(pid: Any) -> bool:
    """Return whether a process of that number runs on this machine; a dead one whose parent has not looked does not."""
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process is a process
        return True
    with contextlib.suppress(OSError):  # where there is no /proc, a number is all there is to go by
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def open_run(path: str | os.PathLike[str] | Run, *, space: Space | None = None) -> Run:
    """Return the run at `path`.

    Args:
        path: the run folder; a run is returned as it is.
        space: the space, where it is not a built-in one.

    Raises:
        RunError: if there is no run folder, or one of another version.
    """
    return path if isinstance(path, Run) else Run(RunFolder.open(path), space)
