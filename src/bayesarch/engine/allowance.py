"""The time a search may take, and how it is divided between searching, ranking, closing epochs and measuring."""

import math

from bayesarch.engine.place import Place

__all__ = ["Allowance"]


class Allowance:
    """Time allowed.

    Args:
        minutes: how long the whole search may take; None: as long as it wants.
    """

    def __init__(self, minutes: float | None) -> None:
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.closing = self.ending = 0.0

    def divide(self, place: Place, *, steps: int, closing: int, ending: float) -> None:
        """Set time aside for what follows the training of a search, at its pace so far; afterwards nothing.

        Each part gets at most half of what there is.

        Args:
            place: where the search is.
            steps: steps of this stage so far.
            closing: steps of the closing epochs.
            ending: work of the method's last boundary, in steps.
        """
        self.closing = self.ending = 0.0
        if place.stage == "search" and steps:
            pace = place.seconds / steps
            self.closing = min(closing * pace, self.seconds / 2)
            self.ending = min(ending * pace, (self.seconds - self.closing) / 2)

    def late(self, place: Place) -> bool:
        """Return whether the time is over: for the training in this stage, or for measuring at the end.

        What is measured at the end is left out where less than a tenth of the time is left for it.
        """
        if place.stage == "examine":
            return place.seconds >= 0.9 * self.seconds
        return place.seconds >= self.seconds - self.closing - self.ending

    def gone(self, place: Place) -> float:
        """Return which share of the time has gone, that of the closing epochs not counted; 0 where all the time is."""
        return place.seconds / (self.seconds - self.closing)

    def trained(self, place: Place) -> float:
        """Return which share of the time for training has gone; 0 where all the time is."""
        return place.seconds / (self.seconds - self.closing - self.ending)
