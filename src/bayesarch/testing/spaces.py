"""What every space keeps."""

import json
import random

from bayesarch.errors import SpaceError
from bayesarch.spaces import Architecture, Space

__all__ = ["check_space"]


def check_space(space: Space, *, samples: int = 200, enumerate_up_to: int = 1000) -> None:
    """Check notation, JSON, hashing, canonical form, enumeration and errors of a space.

    Args:
        space: the space.
        samples: random architectures to check.
        enumerate_up_to: enumerate the space if it is at most this large.

    Raises:
        AssertionError: saying what is broken.
    """
    assert len(space.labels) == space.n_options == len(set(space.labels)), "labels must be distinct, one per option"
    rng = random.Random(0)
    drawn = [Architecture(space, space.random_picks(rng)) for _ in range(samples)]
    for arch in drawn:
        assert Architecture.parse(str(arch), space) == arch, f"parse(str(arch)) must be arch: {arch}"
        record = json.loads(json.dumps(arch.to_json()))
        assert Architecture.parse(record, space) == arch, f"JSON must round-trip: {arch}"
        assert Architecture.parse(record, space).digest == arch.digest, "digests must be stable"
        assert hash(Architecture(space, arch.picks)) == hash(arch), "equal architectures must hash equally"
        assert arch.canonical == Architecture(space, arch.picks).canonical, "canonical must be deterministic"
        assert all(space.labels[g].endswith(name) for g, name in _picked(arch)), "columns must match the picks"
    if space.size <= enumerate_up_to:
        everything = [Architecture(space, picks) for picks in space.all_picks()]
        assert len(set(everything)) == space.size, "enumeration must give every architecture once"
        assert len({arch.digest for arch in everything}) == space.size, "digests must tell architectures apart"
        assert len({str(arch) for arch in everything}) == space.size, "notation must tell architectures apart"
        assert set(drawn) <= set(everything), "random architectures must be in the space"
    _check_errors(drawn[0])


def _picked(arch: Architecture) -> list[tuple[int, str]]:
    names = [name for position in range(len(arch.picks)) for name in arch.option_names(position)]
    return list(zip(arch.columns, names, strict=True))


def _check_errors(arch: Architecture) -> None:
    """Check that a wrong option is refused with the choice and the legal options in the message."""
    space, choice = arch.space, arch.space.choices[0]
    record = arch.to_json()
    record["picks"] = {**record["picks"], choice.name: ["no such option"]}
    try:
        Architecture.parse(record, space)
    except SpaceError as error:
        message = str(error)
    else:
        raise AssertionError("an unknown option must be refused")
    assert choice.name in message, f"the message must name the choice: {message}"
    assert choice.options[0] in message, f"the message must name the legal options: {message}"
