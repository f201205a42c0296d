import random

import pytest

from bayesarch.errors import SpaceError
from bayesarch.spaces import NB201, SPACES, TOY, Architecture, Choice, Space
from bayesarch.testing import check_space, tricky_space


def any_space() -> Space:
    """Two choices that each take a subset."""
    return Space(
        name="subsets",
        choices=(Choice(name="a", options=("x", "y"), pick="any"), Choice(name="b", options=("z",), pick="any")),
        skeleton="read-out",
        sizes=TOY.sizes,
    )


CLOSED = [space for space in SPACES.values() if not space.open]


@pytest.mark.parametrize("space", [*CLOSED, tricky_space(), any_space()], ids=lambda s: s.name)
def test_contract(space):
    check_space(space, samples=200 if space.n_options < 1000 else 10)


def test_the_contract_can_fail():
    broken = Space(
        name="broken",
        choices=TOY.choices,
        inputs=TOY.inputs,
        outputs=TOY.outputs,
        skeleton=TOY.skeleton,
        sizes=TOY.sizes,
        format_fn=lambda arch: "always the same",
        parse_fn=lambda text, space: ((0,), (0,), (0,)),
    )
    with pytest.raises(AssertionError, match="parse"):
        check_space(broken)


def test_sizes():
    assert (NB201.size, NB201.n_options) == (15_625, 30)
    assert (TOY.size, TOY.n_options) == (27, 9)
    assert any_space().size == 8


def test_nb201_classes_and_dead_cells():
    cells = [Architecture(NB201, picks) for picks in NB201.all_picks()]
    assert len({cell.canonical for cell in cells}) == 6_466  # the published number
    assert sum(not NB201.connected(cell.picks) for cell in cells) == 341


def test_every_string_of_the_benchmark_round_trips(shared_data):
    import pandas as pd

    strings = pd.read_parquet(shared_data / "nb201.parquet", columns=["arch"])["arch"]
    assert len({str(Architecture.parse(text, "nb201")) for text in strings}) == 15_625
    assert all(str(Architecture.parse(text, "nb201")) == text for text in strings)


def test_equivalent_cells_share_a_canonical_form():
    one = Architecture.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|", "nb201")
    two = Architecture.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|", "nb201")
    assert one.canonical != two.canonical
    three = Architecture.parse("|none~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|none~0|skip_connect~1|none~2|", "nb201")
    four = Architecture.parse("|none~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|avg_pool_3x3~1|none~2|", "nb201")
    assert three.canonical == four.canonical


def test_a_skip_stands_for_the_node_it_reads():
    through = Architecture.parse("|skip_connect~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|skip_connect~2|", "nb201")
    direct = Architecture.parse("|skip_connect~0|+|nor_conv_3x3~0|none~1|+|none~0|none~1|skip_connect~2|", "nb201")
    pooled = Architecture.parse("|avg_pool_3x3~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|skip_connect~2|", "nb201")
    assert through.canonical == direct.canonical != pooled.canonical


def test_inactive_edges():
    cell = Architecture.parse(
        "|none~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|skip_connect~0|skip_connect~1|none~2|", "nb201"
    )
    names = {NB201.choices[p].name for p in cell.inactive}
    # nothing reaches node 1, and nothing leaves node 2: 2<-0 and 2<-1 lead nowhere, 3<-1 starts nowhere
    assert names == {"2<-0", "2<-1", "3<-1"}


def test_toy_canonical_form_counts_products():
    classes = {Architecture(TOY, picks).canonical for picks in TOY.all_picks()}
    assert classes == {"0", "x0", "x1", "x2", "x0+x0", "x0+x1", "x0+x2", "x1+x1", "x1+x2"}
    planted = [Architecture(TOY, picks) for picks in TOY.all_picks()]
    assert [str(a) for a in planted if a.canonical == "x0+x2"] == ["|product~0|+|skip~0|product~1|"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("|nor_conv~0|+|none~0|none~1|+|none~0|none~1|none~2|", ["1<-0", "nor_conv_1x1", "did you mean"]),
        ("|none~0|+|none~0|none~1|", ["three groups"]),
        ("|none~0|+|none~1|none~0|+|none~0|none~1|none~2|", ["node 2", "in order"]),
        ("none~0+|none~0|none~1|+|none~0|none~1|none~2|", ["node 1"]),
        ('{"space": "nb201", "picks": {"9<-0": ["none"]}}', ["9<-0", "did you mean"]),
        ('{"space": "nb201", "picks": {"1<-0": ["none"]}}', ["no pick", "2<-0"]),
        ('{"space": "nb2"', ["JSON"]),
    ],
)
def test_errors_name_what_is_wrong(text, words):
    with pytest.raises(SpaceError) as caught:
        Architecture.parse(text, "nb201")
    assert all(word in str(caught.value) for word in words)


def test_picks_are_checked():
    with pytest.raises(SpaceError, match="exactly one"):
        Architecture(TOY, ((0, 1), (0,), (0,)))
    with pytest.raises(SpaceError, match=r"0\.\.2"):
        Architecture(TOY, ((3,), (0,), (0,)))
    with pytest.raises(SpaceError, match="3 choices"):
        Architecture(TOY, ((0,),))
    with pytest.raises(SpaceError, match="unknown space"):
        Architecture.parse("|none~0|", "nb2001")
    with pytest.raises(SpaceError, match="belongs to space"):
        Architecture.parse(Architecture(TOY, ((0,), (0,), (0,))).to_json(), "nb201")


def test_digest_is_pinned():
    """A digest names files; it must not change between versions."""
    cell = Architecture.parse("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|", "nb201")
    assert cell.digest == "31838375503b"


def test_random_picks_are_uniform():
    rng, n = random.Random(0), 6000
    counts = {}
    for _ in range(n):
        picks = TOY.random_picks(rng)
        counts[picks] = counts.get(picks, 0) + 1
    # 27 cells, expected 222 each, standard error 14.6; six standard errors: false alarm below 1e-7
    assert len(counts) == 27
    assert all(abs(count - n / 27) < 6 * (n / 27 * 26 / 27) ** 0.5 for count in counts.values())
