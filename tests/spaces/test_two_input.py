"""The spaces of DARTS and BayesNAS: notation, wiring, and the parameter counts that were published."""

import pytest

from bayesarch.errors import SpaceError
from bayesarch.nets import architecture_cost, build, network_cost, option_costs, tidy_sizes
from bayesarch.spaces import BAYESNAS_CELL, DARTS, TREE_CELL, Architecture, tree_cell

V1 = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"
)
V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
RELEASED = {
    "0.005": (
        "normal(n0: max3~in1 avg3~in1 id~in1; n1: id~in0 sep5~in1; n2: avg3~in0 id~in1 max3~in1; n3: sep5~in1 max3~n0) "
        "reduce(n0: sep3~in0 sep5~in0 max3~in0 avg3~in1 max3~in1; n1: max3~n0 avg3~n0 id~n0; n2: id~in1 max3~in1; "
        "n3: sep3~in1 max3~in1 max3~n0)"
    ),
    "0.007": (
        "normal(n0: sep3~in1 id~in1; n1: sep3~in0 id~in0; n2: id~in0 sep3~in1; n3: sep5~in1 max3~in1 avg3~in1 id~n0) "
        "reduce(n0: sep5~in0 avg3~in0 avg3~in1 max3~in1 id~in1 sep5~in1; n1: avg3~in1 id~n0; n2: avg3~in1 sep5~n0 "
        "id~n0; n3: avg3~n0 max3~n0)"
    ),
    "0.01": (
        "normal(n0: sep5~in0 sep5~in1 max3~in1 avg3~in1 id~in1; n1: max3~in0 id~in0; n2: id~in0 max3~in1; n3: avg3~n0) "
        "reduce(n0: id~in0 sep3~in1 avg3~in1 max3~in1 sep5~in1; n1: max3~in1 avg3~in1; n2: sep3~in1 avg3~in1; "
        "n3: sep5~n0)"
    ),
}
"""BayesNAS's released cells, by lambda (spec 4.1)."""


def cost(arch, shape=(3, 32, 32), classes=10, **sizes):
    return architecture_cost(arch, sizes=tidy_sizes(arch.space, sizes), input_shape=shape, classes=classes)


@pytest.mark.parametrize(
    ("lam", "params", "mega_macs"), [("0.005", 2_512_198, 393), ("0.007", 3_197_350, 492), ("0.01", 2_575_702, 400)]
)
def test_released_cells_have_the_published_size_on_cifar(lam, params, mega_macs):
    found = cost(Architecture.parse(RELEASED[lam], BAYESNAS_CELL), channels=36, layers=20)
    assert found.params == params
    assert round(found.macs / 1e6) == mega_macs


@pytest.mark.parametrize(("lam", "params"), [("0.005", 3.899), ("0.007", 4.708), ("0.01", 4.007)])
def test_released_cells_have_the_published_size_on_imagenet(lam, params):
    """The released constructor leaves out the first halving, 48 x 48 weights, without which its forward pass fails."""
    arch = Architecture.parse(RELEASED[lam], BAYESNAS_CELL)
    found = cost(arch, (3, 224, 224), 1000, channels=48, layers=14, large=True)
    assert round((found.params - 48 * 48) / 1e6, 3) == params


@pytest.mark.parametrize(("genotype", "cifar", "imagenet"), [(V1, 3_169_414, 4_510_432), (V2, 3_349_342, 4_718_752)])
def test_published_genotypes_of_darts_have_their_size(genotype, cifar, imagenet):
    """3.349342 M and 4.718752 M are what DARTS's own code prints for its second cell (from memory)."""
    arch = Architecture.parse(genotype, DARTS)
    assert cost(arch, channels=36, layers=20).params == cifar
    assert cost(arch, (3, 224, 224), 1000, channels=48, layers=14, large=True).params == imagenet


@pytest.mark.parametrize("space", [DARTS, BAYESNAS_CELL, TREE_CELL], ids=lambda s: s.name)
def test_additive_costs_are_those_of_the_built_network(space):
    import random

    sizes = {"channels": 4, "alpha": 6} if space is TREE_CELL else {"channels": 4, "layers": 3}
    for seed in range(3):
        arch = Architecture(space, space.random_picks(random.Random(seed)))
        net = build(arch, input_shape=(1, 9, 7), classes=3, sizes=sizes)
        table = option_costs(space, tidy_sizes(space, sizes), (1, 9, 7), 3)
        added = sum((table.options[g] for g in arch.columns), table.base)
        assert network_cost(net, (1, 9, 7)) == cost(arch, (1, 9, 7), 3, **sizes) == added


def test_genotypes_in_and_out():
    arch = Architecture.parse(V2, DARTS)
    assert Architecture.parse(str(arch), DARTS) == arch
    assert str(arch).startswith("Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)")
    assert "reduce_concat=range(2, 6))" in str(arch)
    more = Architecture(DARTS, ((3, 4), *arch.picks[1:]))
    assert str(more).startswith("normal(2: skip_connect~0 sep_conv_3x3~0 sep_conv_3x3~1; 3: ")
    assert Architecture.parse(str(more), DARTS) == more


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (V2.replace("dil_conv_3x3", "dil_conv_9x9"), "dil_conv_3x3"),
        (V2.replace("('sep_conv_3x3', 0), ", "", 1), "eight"),
        (V2.replace("reduce_concat=[2, 3, 4, 5]", "reduce_concat=[4, 5]"), "reduce_concat must be"),
        (V2.replace("('skip_connect', 0), ('dil_conv_3x3', 2)", "('skip_connect', 0), ('skip_connect', 0)"), "twice"),
        (V2.replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', 7)"), "no choice"),
        ("normal(2: sep_conv_3x3~0)", "reads like"),
        ("normal(2: sep_conv_3x3~5) reduce()", "no choice"),
    ],
)
def test_bad_notation_is_named(text, says):
    with pytest.raises(SpaceError, match=says):
        Architecture.parse(text, DARTS)


def test_nothing_and_the_zero_option_are_one():
    arch = Architecture(DARTS, ((0,), *((),) * 27))
    assert arch.picks == ((),) * 28
    assert arch == Architecture(DARTS, ((),) * 28)
    assert DARTS.size == 2 ** (28 * 7)


def test_what_nothing_feeds_is_taken_away():
    label = DARTS.choice_index
    picks = [()] * 28
    picks[label("normal/3<-2")], picks[label("normal/4<-0")], picks[label("normal/5<-4")] = (3,), (4,), (5, 6)
    left = DARTS.cascade(picks)
    assert left[label("normal/3<-2")] == ()
    assert left[label("normal/5<-4")] == (5, 6)
    assert not DARTS.connected(left), "the reduction cell is empty"


def test_a_tree_has_as_many_blocks_as_its_space_says():
    space = tree_cell(3)
    assert len(space.choices) == 3 * 3 * 6
    assert tidy_sizes(space, None).blocks == 3
    from bayesarch.errors import ConfigError

    with pytest.raises(ConfigError, match="blocks"):
        tidy_sizes(space, {"blocks": 4})
