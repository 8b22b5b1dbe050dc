"""Finished runs on the disk: keys, checks, damage and the lock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferkit.demo.errors import DemoError
from xferkit.demo.plan import CellSpec
from xferkit.demo.store import CellOutcome, CellStore

SPEC = CellSpec("es", "moe", 1, ("en", "fr"), steps=7)
OUTCOME = CellOutcome(0.5, 0.25, 1.5, {"en": 0.75, "fr": 0.25}, 7, {"task": 0.1, "gate": None})


def test_store_returns_what_was_saved(tmp_path):
    store = CellStore(tmp_path, {"data": "1"})
    assert store.load(SPEC) is None
    store.save(SPEC, OUTCOME)
    assert store.load(SPEC) == OUTCOME
    assert [path.name for path in tmp_path.iterdir()] == [store.path(SPEC).name]


def test_every_part_of_a_run_and_its_conditions_is_in_the_key(tmp_path):
    store = CellStore(tmp_path, {"data": "1", "torch": "2"})
    others = [
        replace(SPEC, target="en"),
        replace(SPEC, method="man"),
        replace(SPEC, seed=2),
        replace(SPEC, sources=("fr", "en")),
        replace(SPEC, lowercase=True),
        replace(SPEC, steps=8),
    ]
    keys = {store.key(spec) for spec in (SPEC, *others)}
    assert len(keys) == 7
    assert CellStore(tmp_path, {"data": "2", "torch": "2"}).key(SPEC) not in keys
    assert CellStore(tmp_path, {"torch": "2", "data": "1"}).key(SPEC) == store.key(SPEC)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[]", "damaged"),
        (lambda text: "{}", "it lacks 'key'"),
        (lambda text: text.replace('"accuracy": 0.5', '"accuracy": 0.9'), "its checksum does not fit"),
        (lambda text: text.replace('"key": "', '"key": "0'), "it belongs to another run"),
        (lambda text: text.replace("moe", "m\udcffoe").encode("utf-8", "surrogateescape"), "damaged"),
    ],
)
def test_damaged_file_is_named_moved_aside_and_done_again(tmp_path, damage, reason):
    said = []
    store = CellStore(tmp_path, {"data": "1"}, said.append)
    store.save(SPEC, OUTCOME)
    path = store.path(SPEC)
    content = damage(path.read_text(encoding="utf-8"))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert store.load(SPEC) is None
    assert len(said) == 1 and str(path) in said[0] and reason in said[0] and "done again" in said[0]
    assert not path.exists() and path.with_name(path.name + ".corrupt").exists()
    store.save(SPEC, OUTCOME)
    path.write_bytes(b"again")
    assert store.load(SPEC) is None and path.with_name(path.name + ".corrupt.1").exists()


def test_outcomes_are_checked():
    good = {
        "accuracy": 0.5,
        "macro_f1": 0.5,
        "seconds": 1.0,
        "gate": None,
        "steps": 1,
        "losses": {"a": float("nan")},
    }
    assert CellOutcome.checked(good).losses == {"a": None}
    for name, value in (("accuracy", float("nan")), ("macro_f1", 1.5), ("seconds", -1.0), ("steps", -1)):
        with pytest.raises(ValueError, match=name):
            CellOutcome.checked({**good, name: value})


def test_two_demos_do_not_share_a_folder(tmp_path):
    store = CellStore(tmp_path, {})
    left_over = tmp_path / ".x.json.123.tmp"
    left_over.write_text("half")
    with store.locked():
        assert not left_over.exists()
        with pytest.raises(DemoError, match="another demo is writing to"), CellStore(tmp_path, {}).locked():
            pass
    with store.locked():
        pass
