"""Products of ranked streams, best first, read no further than asked."""

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["Lazy", "products"]


class Lazy:
    """A ranked stream of (thing, log weight) that can be looked at by place, read no further than asked."""

    def __init__(self, stream: Iterator[Any]) -> None:
        self._stream = stream
        self._read: list[Any] = []

    def get(self, place: int) -> Any:
        """Return the item at `place`, or None where the stream ends before."""
        while len(self._read) <= place:
            item = next(self._stream, None)
            if item is None:
                return None
            self._read.append(item)
        return self._read[place]


def products(streams: Sequence[Lazy]) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Yield (one thing of each stream, sum of log weights), highest first, without repeats."""
    first = [stream.get(0) for stream in streams]
    if any(item is None for item in first):
        return
    start = (0,) * len(streams)
    heap, seen = [(-sum(item[1] for item in first), start)], {start}
    while heap:
        negative, places = heapq.heappop(heap)
        yield tuple(s.get(place)[0] for s, place in zip(streams, places, strict=True)), -negative
        for i, stream in enumerate(streams):
            following = (*places[:i], places[i] + 1, *places[i + 1 :])
            if following in seen or stream.get(places[i] + 1) is None:
                continue
            seen.add(following)
            total = sum(s.get(place)[1] for s, place in zip(streams, following, strict=True))
            heapq.heappush(heap, (-total, following))
