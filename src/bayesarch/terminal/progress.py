"""What is seen while a search or a training goes on: what it will cost, and a live line."""

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from bayesarch.report.amounts import amount, duration

__all__ = ["Progress", "TrainingProgress", "plan_line"]


def plan_line(plan: Any, settings: Any) -> str:
    """Return what a search will cost, in two lines."""
    return (
        f"{settings.method.name} in {settings.space.name} on {settings.data.source}: supernet "
        f"{amount(plan.supernet_params)} parameters, {amount(plan.supernet_macs)} MACs, "
        f"about {plan.memory_bytes / 2**20:.0f} MiB of tensors{_held(settings.engine)}\n"
        f"at most {plan.max_epochs} epochs of {plan.steps_per_epoch} steps of {1e3 * plan.step_seconds:.0f} ms: "
        f"at most {duration(plan.max_seconds)}; it gets cheaper as options are pruned"
        + ("; measured without compiling, which takes minutes more" if settings.engine.compile else "")
    )


def _held(engine: Any) -> str:
    """Return how less memory is held, where that is so."""
    ways = ["cells computed twice"] if engine.recompute else []
    ways += [f"batches in {engine.parts} parts"] if engine.parts > 1 else []
    ways += ["pages of their own for large ones"] if engine.own_pages else []
    return f" ({', '.join(ways)})" if ways else ""


class _Live:
    """A live line that goes away with its block.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self.console, self.path = Console(stderr=True, quiet=quiet), ""
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the live line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, title: TextColumn, task: str, *, text: str, still: bool = False, **fields: Any) -> Bar:
        """Begin the line and return it; `still`: it is drawn when it is told to be, and not by itself."""
        columns = title, BarColumn(bar_width=18), TextColumn("{task.fields[text]}"), TimeElapsedColumn()
        self._bar = Bar(*columns, console=self.console, transient=True, auto_refresh=not still)
        self._task = self._bar.add_task(task, text=text, **fields)
        self._bar.start()
        return self._bar


class Progress(_Live):
    """A live line per search: stage, epoch, losses, options left, entropy, accuracy, time left.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from bayesarch.workflows.search import Listener

        super().__init__(quiet)
        self.listener = Listener(
            on_plan=lambda plan, settings: self.console.print(
                plan_line(plan, settings), highlight=False, soft_wrap=True
            ),
            on_start=self._start,
            on_step=self._step,
            on_round=self._round,
            on_repeats=self._repeats,
        )
        self._drawn, self._stage = 0.0, ""

    def _start(self, engine: Any) -> None:
        self.path = str(engine.checkpoint.parent.parent)
        self._engine = engine
        self._options = engine.net.space.n_options
        title = TextColumn("{task.fields[stage]:<8}")
        self._line(title, "search", text="starting", still=True, total=1.0, stage="search")
        self._began, self._from = time.monotonic(), self._share(engine.place)

    def _repeats(self, done: int, running: int, of: int) -> None:
        bar = self._bar or self._line(TextColumn("runs"), "runs", text="starting", total=of)
        bar.update(self._task, completed=done, text=f"{done} of {of} done, {running} running")

    def _share(self, place: Any) -> float:
        """Part of the search stage's cap that is done."""
        if place.stage != "search":
            return 1.0
        engine = self._engine
        done = place.rounds * engine.round_steps + place.step
        return float(done / (engine.config.epochs * engine.steps_per_epoch))

    def _step(self, place: Any) -> None:
        changed = place.stage != self._stage
        if self._bar is not None and (changed or time.monotonic() - self._drawn > 0.2):
            self._drawn, self._stage = time.monotonic(), place.stage
            self._bar.update(self._task, completed=self._share(place), stage=place.stage)
            self._bar.refresh()

    def _round(self, record: dict[str, Any]) -> None:
        if self._bar is None:
            return
        share = self._share(self._engine.place)
        gone = time.monotonic() - self._began
        left = gone * (1 - share) / max(share - self._from, 1e-9)
        losses = [record[key] for key in ("weights_loss", "architecture_loss") if key in record]  # of what moved
        text = (
            f"epoch {record['epoch']:g}  loss {'/'.join(f'{loss:.3f}' for loss in losses)}  "
            f"options {record['live_options']}/{self._options}  entropy {record.get('entropy', 0.0):.2f}  "
            f"acc {record['selection_accuracy']:.3f}"
        )
        if share < 1:
            text += f"  at most {duration(left)} left"
        self._bar.update(self._task, completed=share, stage=record["stage"], text=text)
        self._bar.refresh()


class TrainingProgress(_Live):
    """A live line per training: epoch, losses, accuracy, time left.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from bayesarch.workflows.train import TrainingListener

        super().__init__(quiet)
        self.listener = TrainingListener(on_start=self._start, on_round=self._round)

    def _start(self, trainer: Any) -> None:
        self.path = str(trainer.checkpoint.parent.parent)
        self._epochs, self._from, self._began = trainer.config.epochs, trainer.place.epoch, time.monotonic()
        self._line(TextColumn("train"), "train", text="first epoch", total=self._epochs, completed=self._from)

    def _round(self, record: dict[str, Any]) -> None:
        if self._bar is None:
            return
        done = record["epoch"]
        left = (time.monotonic() - self._began) * (self._epochs - done) / max(done - self._from, 1)
        text = (
            f"epoch {done} of {self._epochs}  loss {record['training_loss']:.3f}  "
            f"selection {record['selection_loss']:.3f}  acc {record['selection_accuracy']:.3f}  {duration(left)} left"
        )
        self._bar.update(self._task, completed=done, text=text)
