"""What of a training function and its code cannot be seen, or is state: it is told, and the rest counts as ever."""

from __future__ import annotations

import functools
import io
import json
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import test_transfer_own_code
import torch
from test_transfer_calling import TASKS, Trainer, closure, notes, runs, train
from test_transfer_own_code import conditions, job

from xferkit.transfer import diagnose, identity, own_code

load = test_transfer_own_code.load  # a fixture


class Refuses:
    """Will not be copied, but shows its fields."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("no")


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(5000):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (threading.Lock, "value (lock)"),
        (lambda: {"a b": [1, threading.Lock()]}, r"value['a b'][1] (lock)"),
        (lambda: Trainer(Trainer(threading.Lock())), "value.lr.lr (lock)"),
        (lambda: sys, "value (module sys)"),
        (lambda: (i for i in ()), "value (generator)"),
        (lambda: io.TextIOWrapper(io.BytesIO()), "value (TextIOWrapper)"),
        (lambda: np.zeros(2**23 + 1), "value (ndarray of 64 MiB)"),
        (lambda: torch.zeros(2**23 + 1, dtype=torch.float64), "value (Tensor of 64 MiB)"),
        (lambda: torch.ones(2, 2).to_sparse(), "value (Tensor)"),
        (lambda: bytes(2**26 + 1), "value (bytes of 64 MiB)"),
        (lambda: Refuses(0.1), "value (Refuses)"),
    ],
)
def test_what_cannot_be_seen_is_told(make, name, tmp_path) -> None:
    held = functools.partial(train, value=make())
    (note,) = notes(tmp_path, held)
    assert note == (
        f"Finished runs are used again where train_fn is the same; changes of {name} are not seen; "
        "name them in settings."
    )
    assert notes(tmp_path, held, settings={"data": 1}) == [], "who gave settings has thought of it"
    answer = diagnose(held, TASKS, 1, target="a")
    assert not any("are not seen" in note for note in answer.notes), "nothing is used again without a folder"


def test_what_lies_too_deep_is_told(tmp_path) -> None:
    (note,) = notes(tmp_path, functools.partial(train, value=deep()))
    assert "[0][0] (nested too deep) are not seen" in note


def test_many_values_are_told_in_one_sentence(tmp_path, monkeypatch) -> None:
    held = functools.partial(train, value=[threading.Lock() for _ in range(8)])
    (note,) = notes(tmp_path, held)
    assert "value[0] (lock), value[1] (lock)" in note and "value[4] (lock) and 3 more are not seen" in note
    monkeypatch.setattr(identity, "_MAX_VALUES", 50)
    (note,) = notes(tmp_path, functools.partial(train, value=[[i] for i in range(100)]))
    assert note.count("(one of too many values)") == 1 and "more" not in note


def test_bytes_of_all_arrays_together_are_bounded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(identity, "_MAX_ALL_BYTES", 2**21)
    held = functools.partial(train, value=[np.zeros(2**17) for _ in range(3)])
    (note,) = notes(tmp_path, held)
    assert "changes of value[2] (ndarray of 1 MiB) are" in note


def test_what_can_be_seen_counts_beside_what_cannot(tmp_path) -> None:
    def held(lr: float) -> Any:
        return functools.partial(train, value={"lock": threading.Lock(), "lr": lr, "own": Refuses(lr)})

    assert runs(tmp_path, held(0.1)) == 2 and runs(tmp_path, held(0.1)) == 0
    assert runs(tmp_path, held(0.9)) == 2
    assert runs(tmp_path, functools.partial(train, value=Refuses(0.1))) == 2
    assert runs(tmp_path, functools.partial(train, value=Refuses(0.9))) == 2


def test_a_function_that_refuses_is_named_itself(tmp_path) -> None:
    class Training(Refuses):
        def __call__(self, tasks: tuple[str, ...], seed: int) -> dict[str, float]:
            return dict.fromkeys(tasks, self.lr)

    (note,) = notes(tmp_path, Training(0.1))
    assert "changes of train_fn itself (" in note and "Training) are not seen" in note


def test_nothing_is_looked_at_without_a_folder() -> None:
    looked: list[str] = []

    @dataclass
    class Watched:
        lr: float = 0.1

        def __getattribute__(self, name: str) -> Any:
            looked.append(name)
            return super().__getattribute__(name)

    held = closure(Watched())
    looked.clear()
    assert len(diagnose(held, TASKS, 1, target="a").cells) == 1 and looked == []
    with pytest.raises(ValueError, match="settings must hold plain JSON values"):
        diagnose(train, TASKS, 1, settings={"x": {1}})


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("D = [0.1]\ndef score(): return D[0]\n", "0.1", "0.2"),
        ("D = {'lr': 0.1}\ndef score(): return D['lr']\n", "0.1", "0.2"),
        ("D = (1, [0.1])\ndef score(): return D[0]\n", "0.1", "0.2"),
        ("import types\nD = types.SimpleNamespace(lr=0.1)\ndef score(): return D.lr\n", "0.1", "0.2"),
        ("def score(): return 0.5\ndef other(): return 0.1\n", "0.1", "0.2"),
        ("def score(): return 0.5  # as of 0.1\n", "0.1", "0.2"),
        ("OTHER = 0.1\ndef score(): return 0.5\n", "0.1", "0.2"),
        ("N = 0.1\ndef score():\n    global N\n    N += 1\n    return N\n", "= 0.1", "= 0.2"),
        (
            "N = 0.1\ndef up():\n    global N\n    N += 1\ndef score():\n    up()\n    return N\n",
            "= 0.1",
            "= 0.2",
        ),
        ("def score(): return len(__name__)\n__doc__ = '0.1'\n", "0.1", "0.2"),
    ],
)
def test_mutable_globals_state_and_what_is_not_named_make_no_other_runs(text, old, new, load) -> None:
    before = conditions(load({"job.py": job(text)}).train)
    assert conditions(load({"job.py": job(text.replace(old, new))}).train) == before


@pytest.mark.parametrize(
    "text",
    [
        "N = 0\ndef score():\n    global N\n    N += 1\n    return N\n",
        "class C:\n    calls = 0\n    def run(self):\n        type(self).calls += 1\n        return 1\n"
        "def score(): return C().run()\n",
        "def make():\n    n = 0\n    def inner():\n        nonlocal n\n        n += 1\n        return n\n"
        "    return inner\n"
        "score = make()\n",
        "def score():\n    score.calls = getattr(score, 'calls', 0) + 1\n    return score.calls\n",
        "import functools\n@functools.cache\ndef load(x): return object()\ndef score(): return len([load(1)])\n",
        "SEEN = []\ndef score():\n    SEEN.append(1)\n    return len(SEEN)\n",
        "def score(cache={}):\n    cache[len(cache)] = 1\n    return len(cache)\n",
    ],
)
def test_what_own_code_counts_and_caches_is_its_state(text, load) -> None:
    train = load({"job.py": job(text)}).train
    before = conditions(train)
    train(("a",), 1)
    train(("a",), 2)
    assert conditions(train) == before


def test_too_much_code_is_told(load, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(own_code, "MAX_PARTS", 3)
    text = "".join(f"def f{i}(): return 0.{i}\n" for i in range(9))
    files = {"job.py": job(text, "+".join(f"f{i}()" for i in range(9)))}
    train = load(files).train
    before = conditions(train)
    notes = diagnose(train, ("a", "b"), 1, out=tmp_path / "out").notes
    assert any(
        "changes of own code (beyond 2,000 functions and classes) are not seen" in note for note in notes
    )
    assert conditions(load({"job.py": files["job.py"].replace("0.1", "0.9")}).train) != before
    assert conditions(load({"job.py": files["job.py"].replace("0.8", "0.9")}).train) == before


@pytest.mark.parametrize(
    "change", [lambda c: c.pop("format"), lambda c: c.update(format="1"), lambda c: c.clear()]
)
def test_files_of_another_version_are_called_so(change, tmp_path) -> None:
    """What their hashes stand for is another thing: no code is said to have changed."""
    diagnose(functools.partial(train, value=1), TASKS, 1, target="a", out=tmp_path)
    for path in (tmp_path / "runs").glob("*.json"):
        content = json.loads(path.read_text())
        change(content["conditions"])
        path.write_text(json.dumps(content))
    (note,) = [n for n in diagnose(train, TASKS, 1, target="a", out=tmp_path).notes if "not used" in n]
    assert note.endswith("what decides the result has changed: another version of xferkit.")
