"""Positions of streams: taken anywhere they come back exactly, and in other data they are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from stream_data import SAMPLERS, data, same, three
from torch import Tensor

from xferkit.data.streams import DomainData, DomainStream


@pytest.mark.parametrize("bucket", [0, 1, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_every_position_the_next_draws_are_those_that_would_have_come(sampler, bucket):
    def new() -> DomainStream:
        return three(sampler=sampler, bucket=bucket, temperature=2.0)

    stream = new()
    states, batches = [], []
    for _ in range(46):
        states.append(stream.state_dict())
        batches.append(stream.next())
    # States are taken to pieces and put together again, as in a file; drawing on must not change them.
    for position in range(41):
        state = rebuilt(states[position])
        torch.randn(3)
        other = new()
        for _ in range(position % 3):
            other.next()
        other.load_state_dict(state)
        assert_equal_states(other.state_dict(), state)
        for expected in batches[position : position + 6]:
            assert same(other.next(), expected)


def rebuilt(value):
    """A copy that holds nothing but what a checkpoint takes."""
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        return {key: rebuilt(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rebuilt(item) for item in value]
    if isinstance(value, Tensor):
        return value.clone()
    assert type(value) in (int, float, str)
    return value


def assert_equal_states(a, b) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_states(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal_states(x, y)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("part", ["orders", "shares", "dealer"])
def test_every_part_of_a_position_matters(part):
    def new() -> DomainStream:
        return three(sampler="temperature", bucket=4)

    stream = new()
    for _ in range(6):
        stream.next()
    state = stream.state_dict()
    expected = [stream.next() for _ in range(12)]
    state["start"][part] = new().state_dict()["start"][part]
    other = new()
    other.load_state_dict(state)
    assert not all(same(other.next(), batch) for batch in expected)


def test_a_position_in_other_data_is_refused():
    state = three().state_dict()
    cases = {
        "sizes": [data("x", 9), data("y", 8, 20), data("z", 3, 40)],
        "domains": [data("x", 9), data("v", 7, 20), data("z", 3, 40)],
        "lengths": [
            data("x", 9),
            DomainData("y", data("y", 8).inputs.select(torch.arange(1, 8)), torch.arange(7)),
            data("z", 3),
        ],
    }
    for key, domains in cases.items():
        with pytest.raises(
            ValueError, match=f"'labelled': the saved position belongs to other data.*: {key} was"
        ):
            DomainStream(domains, 4, seed=7, name="labelled").load_state_dict(state)
    domains = [data("x", 9), data("y", 7, 20), data("z", 3, 40)]
    for key, options in {
        "name": {"name": "unlabelled"},
        "seed": {"seed": 8},
        "sampler": {"sampler": "cycling"},
        "temperature": {"temperature": 2.0},
        "batch_size": {"batch_size": 5},
        "bucket": {"bucket": 2},
    }.items():
        settings = {"batch_size": 4, "seed": 7, "name": "labelled"} | options
        with pytest.raises(ValueError, match=f"{key} was .*, here it is"):
            DomainStream(domains, **settings).load_state_dict(state)
    with pytest.raises(ValueError, match="name was None"):
        three().load_state_dict({})


def test_a_damaged_position_is_refused_and_leaves_the_stream_as_it_was():
    def damaged(change):
        state = copy.deepcopy(three(sampler="cycling", bucket=2).state_dict())
        change(state)
        return state

    changes = {
        "'taken': 3": lambda s: s.update(taken=3),
        "'taken': None": lambda s: s.pop("taken"),
        "cannot be used: no 'start'": lambda s: s.pop("start"),
        "no 'dealer'": lambda s: s["start"].pop("dealer"),
        "turn must be between 0 and 2, got 3": lambda s: s["start"]["shares"].update(turn=3),
        "position must be between 0 and 9, got 10": lambda s: s["start"]["orders"][0].update(position=10),
        "shorter": lambda s: s["start"]["orders"].pop(),
        "state of a generator must be": lambda s: s["start"].update(dealer=torch.zeros(3, dtype=torch.uint8)),
        "a generator must be uint8": lambda s: s["start"]["orders"][2].update(generator="x"),
    }
    for message, change in changes.items():
        stream, untouched = (three(sampler="cycling", bucket=2) for _ in range(2))
        for _ in range(3):
            stream.next()
            untouched.next()
        with pytest.raises(ValueError, match=message):
            stream.load_state_dict(damaged(change))
        for _ in range(5):
            assert same(stream.next(), untouched.next())


def test_a_position_is_small_whatever_the_data():
    stream = DomainStream([data("x", 2000)], 4, seed=0, name="s", bucket=50)
    stream.next()

    def size(value) -> int:
        if isinstance(value, dict):
            return sum(map(size, value.values()))
        if isinstance(value, list):
            return sum(map(size, value))
        return value.numel() * value.element_size() if isinstance(value, Tensor) else 8

    assert size(stream.state_dict()) < 12_000
