"""The learning rate of the weights, by where the search is."""

from bayesarch.engine.place import EngineConfig, Place
from bayesarch.functional import cosine, falling_steps, warm_restarts

__all__ = ["scheduled_lr"]


def scheduled_lr(config: EngineConfig, place: Place, *, done: int, steps_per_epoch: int, allowed: float) -> float:
    """Return the learning rate by the schedule over the nominal length, never moved by a pruning.

    Args:
        config: rates, schedule and nominal lengths.
        place: stage, time spent, and the rate at which the closing epochs start.
        done: steps of this stage so far.
        steps_per_epoch: weight steps in an epoch.
        allowed: seconds that the search may take; a cosine ends when the time does.
    """
    if place.stage != "search":
        total = max(config.closing_epochs * steps_per_epoch, 1)
        return cosine(done, total, place.closing_lr, min(config.lr_min, place.closing_lr))
    if config.schedule == "restarts":
        return warm_restarts(done / steps_per_epoch, config.restart_epochs, config.lr, config.lr_min)
    if config.schedule == "steps":
        return falling_steps(done / steps_per_epoch, config.milestones, config.lr, config.step_factor)
    total = config.epochs * steps_per_epoch
    return cosine(max(float(done), total * place.seconds / allowed), total, config.lr, config.lr_min)
