"""How long a network takes for one image, by the threads that it would be run with."""

from torch import nn

from bayesarch.engine import working_threads
from bayesarch.nets import latency_ms, network_cost

__all__ = ["image_latency"]


def image_latency(net: nn.Module, input_shape: tuple[int, int, int], *, repeats: int = 20) -> float:
    """Return the median milliseconds of one image, by as many threads as its MACs keep busy (decision 9).

    More would wait for one another, asleep: several times as long where a network is small.
    """
    with working_threads(network_cost(net, input_shape).macs):
        return latency_ms(net, input_shape, repeats=repeats)
