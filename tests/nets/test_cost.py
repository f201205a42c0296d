import random

import pytest
import torch
from torch import nn

from bayesarch.errors import ConfigError
from bayesarch.nets import architecture_cost, build, latency_ms, network_cost, option_costs, tidy_sizes, widest
from bayesarch.spaces import NB201, Architecture

BENCHMARK = {"sizes": tidy_sizes(NB201, None), "input_shape": (3, 32, 32), "classes": 10}

# cells whose parameter count is known to be wrong in the benchmark's own table
KNOWN_WRONG = [
    327, 737, 768, 770, 775, 1151, 2958, 3034, 3077, 3103, 3113, 3400, 3681, 3899, 4024, 4070,
    4137, 4165, 4227, 4248, 4464, 4578, 4650, 4815, 4982, 5010, 5065, 5694, 5751, 5824, 5835, 6545,
    6547, 6769, 6877, 6912, 6977, 7263, 7268, 7326, 7358, 7396, 7629, 7717, 7785, 7793, 7894, 7950,
    7981, 8181, 8280, 8322, 8423, 8447, 8533, 8540, 8557, 8719, 8809, 8965, 9043, 9141, 9172, 9270,
    9296, 9444, 9473, 9597, 9632, 9654, 9735, 10107, 10118, 10162, 10167, 10207, 10212, 10281, 10308, 10340,
    10369, 10597, 10709, 10821, 10906, 10947, 10978, 11073, 11096, 11167, 11222, 11238, 11259, 11370, 11374, 11511,
    11514, 11581, 11676, 11843, 11911, 11961, 11964, 12016, 12121, 12187, 12204, 12271, 12316, 12317, 12464, 12540,
    12542, 12568, 12707, 12748, 12822, 12844, 12939, 13003, 13223, 13326, 13479, 13492, 13599, 13970, 14264, 14267,
    14293, 14412, 14419, 14529, 14648, 14661, 14684, 14689, 14995, 15033, 15036, 15040, 15107, 15347, 15372, 15386,
    15392, 15403, 15435, 15474, 15484, 15539,
]  # fmt: skip


def test_all_cells_have_the_counts_of_the_benchmark(shared_data):
    import pandas as pd

    table = pd.read_parquet(shared_data / "nb201.parquet", columns=["arch", "params_c10", "macs_c10_analytic"])
    wrong = []
    for index, (text, params, macs) in enumerate(table.itertuples(index=False)):
        cost = architecture_cost(Architecture.parse(text, NB201), **BENCHMARK)
        assert cost.macs == macs, text
        if cost.params != params:
            wrong.append(index)
    assert wrong == KNOWN_WRONG


@pytest.mark.parametrize(
    ("text", "params", "macs"),
    [
        ("|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
         (129_306, 135_156, 136_456), (15_647_370, 15_653_220, 3_919_480)),
        ("|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|",
         (802_426, 808_276, 809_576), (113_951_370, 113_957_220, 28_495_480)),
        ("|skip_connect~0|+|skip_connect~0|skip_connect~1|+|none~0|nor_conv_1x1~1|none~2|",
         (101_306, 107_156, 108_456), (11_715_210, 11_721_060, 2_936_440)),
    ],
)  # fmt: skip
def test_anchors_of_the_benchmark(text, params, macs):
    """Counts the benchmark computed itself (parameters exact; its FLOPs are printed to 10 and count a bias)."""
    arch = Architecture.parse(text, NB201)
    for shape, classes, count, flops in zip(
        [(3, 32, 32)] * 2 + [(3, 16, 16)], (10, 100, 120), params, macs, strict=True
    ):
        cost = architecture_cost(arch, sizes=BENCHMARK["sizes"], input_shape=shape, classes=classes)
        assert cost.params == count
        assert cost.macs == pytest.approx(flops, abs=2 * classes)


def test_closed_form_equals_the_built_network():
    rng = random.Random(0)
    for _ in range(6):
        arch = Architecture(NB201, NB201.random_picks(rng))
        sizes = {"channels": rng.choice([4, 6]), "cells": rng.choice([1, 2]), "stages": rng.choice([1, 2, 3])}
        shape, classes = (rng.choice([1, 3]), rng.choice([7, 12]), rng.choice([8, 9])), rng.choice([2, 5])
        net = build(arch, input_shape=shape, classes=classes, sizes=sizes)
        closed = architecture_cost(arch, sizes=tidy_sizes(NB201, sizes), input_shape=shape, classes=classes)
        assert network_cost(net, shape) == closed
        assert net(torch.zeros(2, *shape)).shape == (2, classes)
        assert net.training


def test_macs_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert network_cost(net, (3, 8, 8)).macs == 8 * 16 * 27 + 128 * 5


def test_skeleton_is_the_benchmark_s():
    """17 blocks; channels 16, 32, 64; resolution 32, 16, 8; a final norm and ReLU before the mean."""
    arch = Architecture.parse("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|", NB201)
    net = build(arch, input_shape=(3, 32, 32), classes=10)
    assert len(net.layers) == 17
    shapes = []
    for layer in net.layers:
        layer.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    net(torch.zeros(2, 3, 32, 32))
    assert shapes == [(16, 32, 32)] * 5 + [(32, 16, 16)] * 6 + [(64, 8, 8)] * 6
    assert [type(m) for m in net.head] == [nn.BatchNorm2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    reduction = net.layers[5]
    assert [type(m) for m in reduction.shortcut] == [nn.AvgPool2d, nn.Conv2d]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in reduction.modules()) == 2


def test_build_checks_its_arguments():
    arch = Architecture(NB201, ((1,),) * 6)
    with pytest.raises(ConfigError, match=r"space\.chanels.*did you mean 'channels'"):
        build(arch, input_shape=(3, 8, 8), classes=10, sizes={"chanels": 4})
    with pytest.raises(ConfigError, match="at least 2 classes"):
        build(arch, input_shape=(3, 8, 8), classes=1)
    with pytest.raises(ConfigError, match="input_shape"):
        build(arch, input_shape=(3, 0, 8), classes=2)


def test_latency_is_a_positive_number_of_milliseconds():
    net = build(Architecture(NB201, ((1,),) * 6), input_shape=(1, 8, 8), classes=2, sizes={"cells": 1, "channels": 4})
    fast = latency_ms(net, (1, 8, 8), repeats=5)
    slow = latency_ms(net, (1, 64, 64), batch=32, repeats=5)
    assert 0 < fast < slow
    assert net.training


@pytest.mark.parametrize("most", [0, 7, 8, 9, 23, 24, 1000, 10**9])
def test_the_widest_is_found_by_few_trials(most):
    tried = []

    def macs(channels):
        tried.append(channels)
        return 3 * channels**2 + 5 * channels

    largest = max((c for c in range(1, 20_000) if 3 * c**2 + 5 * c <= most), default=1)
    assert widest(macs, most) == largest
    assert len(tried) <= 2 * largest.bit_length() + 2


def test_pricing_leaves_the_global_stream_where_it_was():
    sizes = tidy_sizes(NB201, {"channels": 7})  # of no other test, so that nothing is remembered
    before = torch.get_rng_state()
    option_costs(NB201, sizes, (3, 8, 8), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_pricing_all_options_computes_nothing(monkeypatch):
    seen = []
    hooked = torch.nn.Module.__call__
    monkeypatch.setattr(torch.nn.Conv2d, "__call__", lambda conv, x: seen.append(len(x)) or hooked(conv, x))
    option_costs(NB201, tidy_sizes(NB201, {"channels": 9}), (3, 8, 8), 4)
    assert seen
    assert set(seen) == {0}
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    assert network_cost(net, (3, 8, 8), images=0) == network_cost(net, (3, 8, 8))
    assert seen[-2:] == [0, 1]
