"""Which finished runs a training function may use again: those of an equal text that holds equal values."""

from __future__ import annotations

import argparse
import datetime
import enum
import functools
import io
import logging
import os
import re
import subprocess
import sys
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from xferkit.transfer import diagnose

TASKS = ("a", "b")


def train(tasks: tuple[str, ...], seed: int, value: Any = None) -> dict[str, float]:
    return dict.fromkeys(tasks, 0.5)


class Trainer:
    """A plain object; its method and itself are trainings."""

    def __init__(self, lr: Any) -> None:
        self.lr = lr

    def __call__(self, tasks: tuple[str, ...], seed: int) -> dict[str, float]:
        return dict.fromkeys(tasks, 0.5)

    def train(self, tasks: tuple[str, ...], seed: int) -> dict[str, float]:
        return dict.fromkeys(tasks, 0.5)


class Slotted:
    __slots__ = ("lr", "unset")

    def __init__(self, lr: float) -> None:
        self.lr = lr


class Rates(dict):
    """A container with a field of its own."""

    def __init__(self, lr: float) -> None:
        super().__init__(x=1)
        self.lr = lr


class Names(set):
    """As :class:`Rates`."""

    def __init__(self, lr: float) -> None:
        super().__init__("abc")
        self.lr = lr


class Cached(Trainer):
    @functools.cached_property
    def steps(self) -> int:
        return 3


class Colour(enum.Enum):
    RED, BLUE = "red", "blue"


class Level(enum.IntEnum):
    LOW, HIGH = 1, 2


@dataclass
class Inner:
    path: Path
    rates: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    inner: Inner


def closure(value: Any) -> Callable[..., dict[str, float]]:
    def inner(tasks, seed):
        assert [value]
        return dict.fromkeys(tasks, 0.5)

    return inner


def default(value: Any) -> Callable[..., dict[str, float]]:
    def inner(tasks, seed, *, held=value):
        return dict.fromkeys(tasks, 0.5)

    return inner


def helped(value: Any) -> Callable[..., dict[str, float]]:
    """A helper that calls itself, and so is in its own closure."""

    def helper(n):
        return value if n == 0 else helper(n - 1)

    def inner(tasks, seed):
        assert helper(2) == value
        return dict.fromkeys(tasks, 0.5)

    return inner


def with_attribute(value: Any) -> Callable[..., dict[str, float]]:
    def inner(tasks, seed):
        return dict.fromkeys(tasks, inner.lr)

    inner.lr = value
    return inner


def typed(rate: float) -> Any:
    """A class that has no text to read, as one of a notebook."""
    names: dict[str, Any] = {}
    exec(f"class T:\n def __call__(self, tasks, seed): return dict.fromkeys(tasks, {rate})", names)
    return names["T"]()


def parameter(value: float, grad: bool = True) -> Any:
    return torch.nn.Parameter(torch.full((3,), value), requires_grad=grad)


def linear(value: float) -> Any:
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, value)
    torch.nn.init.constant_(model.bias, 0.0)
    return model


def loops() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


def runs(folder: Path, train_fn: Callable[..., Any], **change: Any) -> int:
    """How many runs the function had to do."""
    before = len(list(folder.glob("runs/*.json")))
    diagnose(train_fn, TASKS, 1, target="a", out=folder, **change)
    return len(list(folder.glob("runs/*.json"))) - before


def notes(folder: Path, train_fn: Callable[..., Any], **change: Any) -> list[str]:
    answer = diagnose(train_fn, TASKS, 1, target="a", out=folder, **change)
    return [note for note in answer.notes if "are not seen" in note]


VALUES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "path": (lambda: Path("v1"), lambda: Path("v2")),
    "pure path": (lambda: PurePosixPath("v1"), lambda: PurePosixPath("v2")),
    "beside a path": (lambda: {"lr": 0.1, "dir": Path("x")}, lambda: {"lr": 0.9, "dir": Path("x")}),
    "key": (lambda: {1: Path("x")}, lambda: {"1": Path("x")}),
    "deep": (lambda: [({"x": {Path("a")}},)], lambda: [({"x": {Path("b")}},)]),
    "float32": (lambda: np.float32(0.1), lambda: np.float32(0.9)),
    "kind of number": (lambda: np.float32(0.5), lambda: np.float64(0.5)),
    "longdouble": (lambda: np.longdouble(1) / 3, lambda: np.longdouble(1) / 7),
    "array": (lambda: np.arange(6), lambda: np.arange(6)[::-1]),
    "shape": (lambda: np.arange(6), lambda: np.arange(6).reshape(2, 3)),
    "dtype": (lambda: np.zeros(2, "f4"), lambda: np.zeros(2, "i4")),
    "objects": (lambda: np.array(["a", None]), lambda: np.array(["b", None])),
    "dates": (lambda: np.array(["2020"], "M8[D]"), lambda: np.array(["2021"], "M8[D]")),
    "records": (lambda: np.array([(1, 2.0)], "i1,f8"), lambda: np.array([(1, 3.0)], "i1,f8")),
    "mask": (lambda: np.ma.array([1, 2], mask=[0, 1]), lambda: np.ma.array([1, 2], mask=[1, 0])),
    "tensor": (lambda: torch.tensor([1.0, 2.0]), lambda: torch.tensor([1.0, 3.0])),
    "bfloat16": (lambda: torch.ones(2, dtype=torch.bfloat16), lambda: torch.zeros(2, dtype=torch.bfloat16)),
    "view": (lambda: torch.arange(4.0)[::2], lambda: torch.arange(4.0)[1::2]),
    "conjugate": (lambda: torch.tensor([1j]).conj(), lambda: torch.tensor([1j])),
    "no elements": (lambda: torch.zeros(0, 2), lambda: torch.zeros(0, 3)),
    "frozen": (lambda: parameter(1.0), lambda: parameter(1.0, grad=False)),
    "module of torch": (lambda: linear(0.1), lambda: linear(0.9)),
    "torch dtype": (lambda: torch.float32, lambda: torch.float64),
    "device": (lambda: torch.device("cpu"), lambda: torch.device("meta")),
    "set": (lambda: {"a", "b", "c"}, lambda: {"a", "b", "d"}),
    "frozenset": (lambda: frozenset({1, 2}), lambda: frozenset({1, 3})),
    "namespace": (lambda: argparse.Namespace(lr=0.1), lambda: argparse.Namespace(lr=0.9)),
    "simple namespace": (lambda: types.SimpleNamespace(lr=0.1), lambda: types.SimpleNamespace(lr=0.9)),
    "object": (lambda: Trainer(0.1), lambda: Trainer(0.9)),
    "objects in an object": (lambda: Trainer([Trainer(0.1)]), lambda: Trainer([Trainer(0.9)])),
    "slots": (lambda: Slotted(0.1), lambda: Slotted(0.9)),
    "dict with a field": (lambda: Rates(0.1), lambda: Rates(0.9)),
    "set with a field": (lambda: Names(0.1), lambda: Names(0.9)),
    "method": (lambda: Trainer(0.1).train, lambda: Trainer(0.9).train),
    "enum": (lambda: Colour.RED, lambda: Colour.BLUE),
    "int enum": (lambda: Level.LOW, lambda: Level.HIGH),
    "nested dataclass": (lambda: Outer(Inner(Path("a"))), lambda: Outer(Inner(Path("b")))),
    "in a dataclass": (
        lambda: Outer(Inner(Path("a"), {"x": {1}})),
        lambda: Outer(Inner(Path("a"), {"x": {2}})),
    ),
    "bytes": (lambda: b"a" * 100, lambda: b"b" * 100),
    "bytearray": (lambda: bytearray(b"a"), lambda: bytearray(b"b")),
    "class": (lambda: Trainer, lambda: Slotted),
    "class of an object": (lambda: Trainer(0.1), lambda: Cached(0.1)),
    "function": (lambda: closure(1), lambda: closure(2)),
    "cached function": (lambda: functools.lru_cache(closure(1)), lambda: functools.lru_cache(closure(2))),
    "partial": (lambda: functools.partial(train, value={1}), lambda: functools.partial(train, value={2})),
    "builtin": (lambda: min, lambda: max),
    "universal function": (lambda: np.add, lambda: np.multiply),
    "lambdas of a line": (lambda: [lambda: 1, lambda: 2][0], lambda: [lambda: 1, lambda: 2][1]),
    "pattern": (lambda: re.compile("a"), lambda: re.compile("a", re.I)),
    "date": (lambda: datetime.date(2020, 1, 1), lambda: datetime.date(2021, 1, 1)),
    "decimal": (lambda: Decimal("0.1"), lambda: Decimal("0.9")),
    "complex": (lambda: 1j, lambda: 2j),
    "range": (lambda: range(3), lambda: range(4)),
    "counter": (lambda: Counter("ab"), lambda: Counter("abb")),
    "ordered": (lambda: OrderedDict(x={1}), lambda: OrderedDict(x={2})),
    "default": (lambda: defaultdict(list, x=[1]), lambda: defaultdict(list, x=[2])),
    "view of a dict": (lambda: types.MappingProxyType({"x": 1}), lambda: types.MappingProxyType({"x": 2})),
    "generator of numbers": (lambda: np.random.default_rng(1), lambda: np.random.default_rng(2)),
    "buffer": (lambda: io.BytesIO(b"a"), lambda: io.BytesIO(b"b")),
    "logger": (lambda: logging.getLogger("a"), lambda: logging.getLogger("b")),
    "holds itself": (loops, lambda: [*loops(), 2]),
    "nothing": (lambda: None, lambda: ...),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_changed_makes_other_runs(name, tmp_path) -> None:
    """And an equal one, made anew, uses them again; nothing of it is called unseen."""
    make, make_other = VALUES[name]
    value, again, other = (functools.partial(train, value=m()) for m in (make, make, make_other))
    assert runs(tmp_path, value) == 2
    assert runs(tmp_path, again) == 0, "equal"
    assert runs(tmp_path, other) == 2, "changed"
    assert notes(tmp_path, value) == notes(tmp_path, other) == []


@pytest.mark.parametrize(
    "make", [Trainer, lambda lr: Trainer(lr).train, helped, with_attribute, typed, closure, default]
)
def test_a_value_counts_wherever_it_is_held(make, tmp_path) -> None:
    assert runs(tmp_path, make(0.1)) == 2 and runs(tmp_path, make(0.1)) == 0
    assert runs(tmp_path, make(0.9)) == 2


def test_cached_results_are_not_what_an_object_is(tmp_path) -> None:
    used = Cached(0.1)
    assert runs(tmp_path, used) == 2 and used.steps == 3
    assert runs(tmp_path, used) == 0


def test_a_wrapper_counts_by_its_own_text_too(tmp_path) -> None:
    def once(function):
        @functools.wraps(function)
        def wrapper(tasks, seed):
            return function(tasks, seed)

        return wrapper

    def twice(function):
        @functools.wraps(function)
        def wrapper(tasks, seed):
            return function(tasks, seed + 1)

        return wrapper

    assert runs(tmp_path, once(train)) == 2 and runs(tmp_path, twice(train)) == 2


def test_a_base_class_counts(tmp_path) -> None:
    def made(base: str) -> Any:
        names: dict[str, Any] = {}
        exec(f"class Base:\n def help(self): return {base}", names)
        return type("T", (names["Base"], Trainer), {})(0.1)

    assert runs(tmp_path, made("1")) == 2 and runs(tmp_path, made("1")) == 0
    assert runs(tmp_path, made("2")) == 2


@pytest.mark.slow
def test_runs_are_used_again_in_another_process(tmp_path) -> None:
    """The order of a set, and every address, is another one there."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch\n"
        "from test_transfer_calling import Trainer, Names, linear, runs, with_attribute\n"
        "from pathlib import Path\n"
        "held = [{'a', 'b', 'c', 'd'}, Names(1), linear(0.5), {'x': with_attribute(1)},"
        " torch.compile(with_attribute(2))]\n"
        f"print(runs(Path({str(tmp_path)!r}), Trainer(held)))"
    )
    for seed, expected in (("1", "2"), ("2", "0")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected
