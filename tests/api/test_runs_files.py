"""Settings in YAML, records with a checksum, options from dataclasses, and the rows that are held out."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch
import yaml

from xferkit.data.lexicon import EncodedTexts, EncodedTokens
from xferkit.data.ragged import Ragged, RaggedLabels
from xferkit.runs.files import (
    MAX_CONFIG_BYTES,
    dump_yaml,
    read_config,
    read_json,
    read_sealed,
    write_sealed,
)
from xferkit.runs.sampling import HeldOut, labels_where, texts_where
from xferkit.runs.schema import build, flatten, nearest, nested, options_of, plain

# -- YAML ------------------------------------------------------------------------------------------------------


def read(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config(path)


def test_yaml_means_what_people_mean(tmp_path):
    text = "train: {no: no.tsv, on: on.tsv}\nlr: 1e-3\nsize: 010\ndate: 2020-01-01\nnone:\nyes: [true, ~, 1.5, .5]\n"
    assert read(tmp_path, text) == {
        "train": {"no": "no.tsv", "on": "on.tsv"},
        "lr": 0.001,
        "size": 10,
        "date": "2020-01-01",
        "none": None,
        "yes": [True, None, 1.5, 0.5],
    }
    assert read(tmp_path, "") == {} and read(tmp_path, b"\xef\xbb\xbfa: 1\r\n") == {"a": 1}
    assert read(tmp_path, json.dumps({"a": [1, {"b": "c"}]})) == {"a": [1, {"b": "c"}]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3: the key 'a' stands twice, in line 1 too"),
        ("t:\n  en: a\n  en: b\n", ":3: the key 'en' stands twice, in line 2 too"),
        ("a: &x 1\nb: *x\n", ":1: anchors (& and *) are not read"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            ":1: the tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("a: !!binary aGk=\n", ":1: the tag "),
        ("a: [1, 2\n", ":2: expected ',' or ']'"),
        ("a:\n\t- b\n", ":2: found character '\\t'"),
        ("a: " + "[" * 40, ":1: more than 20 levels"),
        ("a: " + "[" * 100_000, ":1: more than 20 levels"),
        ("? [1]\n: 2\n", ":1: a key is no text"),
        ("- 1\n", ": holds a list; expected a mapping of settings"),
        ("a: 1\n---\nb: 2\n", ":2: but found another document"),
        ("a: \0", ": cannot be read as YAML (unacceptable character"),
        (b"a: 1\nb: \xe9\n", ":2: holds bytes that are not UTF-8"),
        (b"\xff\xfea\x00", ":1: holds bytes that are not UTF-8"),
        ("a: " + "x" * MAX_CONFIG_BYTES, f" is larger than {MAX_CONFIG_BYTES} bytes"),
    ],
)
def test_bad_yaml_gets_a_sentence(tmp_path, text, sentence):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'c.yaml'}{sentence}") and "\n" not in str(caught.value)


def test_a_config_that_is_not_there_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*none\.yaml: No such file"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        read_config(tmp_path)


ODD = {
    "no": "x", "y": "1e5", "z": "1_0", "h": "0x1f", "o": "010", "f": 1e-8, "n": None, "e": "", "k": "null",
    "t": "12:30", "d": "2020-01-01", "l": [1, 2.0, "3"], "u": "ключ: #x\n y", "m": {}, "p": "1.", "q": ".5", "s": "-",
    "tab": "a\tb", "big": 1e300, "b": True, "w": "true", "star": "*x", "amp": "&x", "bang": "!x", "tilde": "~",
}  # fmt: skip


def test_what_is_written_as_yaml_is_read_back_equal_by_us_and_by_others(tmp_path):
    text = dump_yaml({"odd": ODD, "again": ODD["l"], "shared": ODD["l"]})
    assert read(tmp_path, text) == {"odd": ODD, "again": ODD["l"], "shared": ODD["l"]}
    assert yaml.safe_load(text)["odd"] == ODD


def test_random_texts_survive_yaml(tmp_path):
    rng = random.Random(0)
    alphabet = "01eE.+-_:~nNtTf#'\"!&*[]{},|>% \té\u2028\\"
    texts = ["".join(rng.choice(alphabet) for _ in range(rng.randint(0, 6))) for _ in range(300)]
    assert read(tmp_path, dump_yaml({"texts": texts}))["texts"] == texts


# -- records with a checksum -----------------------------------------------------------------------------------


def test_sealed_records_come_back_and_every_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "r.json"
    write_sealed(path, {"a": 1, "b": [1.5, math.nan, "é"], 3: (1, 2)})
    whole = path.read_bytes()
    assert read_sealed(path) == {"a": 1, "b": [1.5, None, "é"], "3": [1, 2]}
    silent = []
    for place in range(len(whole)):
        for bit in (0, 5):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                if read_sealed(path) != {"a": 1, "b": [1.5, None, "é"], "3": [1, 2]}:
                    silent.append(place)
            except ValueError as error:
                assert str(path) in str(error)
    assert not silent
    for end in range(len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"r\.json"):
            read_sealed(path)


def test_json_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "r.json"
    for text, sentence in (
        ("[1]", "holds a list"),
        ("{", "cannot be read as JSON"),
        ("[" * 10**5, "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_json(path)
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="is larger than 4 bytes"):
        read_json(path, max_bytes=4)


# -- options ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    """Inner.

    Attributes:
        width: how wide it is,
            in units.
        kind: ``"a"`` or ``"b"``.
    """

    width: int = 3
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    """Outer.

    Attributes:
        rate: how fast.
        inner: another.

    Not an attribute: this.
    """

    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "x")
    names: dict[str, str] = field(default_factory=dict)
    inner: Inner = field(default_factory=lambda: Inner(width=7))
    limit: int | None = None
    on: bool = False
    text: str | None = "t"

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError("rate must not be negative")


def test_options_carry_types_defaults_and_words():
    table = options_of(Outer)
    assert list(table) == [
        "rate",
        "sizes",
        "pair",
        "names",
        "inner.width",
        "inner.kind",
        "limit",
        "on",
        "text",
    ]
    assert table["inner.width"].default == 7 and table["inner.kind"].default == "a"
    assert table["inner.width"].help == "how wide it is, in units." and table["rate"].help == "how fast."
    assert table["inner.kind"].help == '"a" or "b".'


def test_values_go_there_and_back():
    values = {
        "rate": 1,
        "sizes": [3],
        "pair": [4, "y"],
        "names": {"a": "b"},
        "inner": {"width": 2},
        "limit": 5,
    }
    flat = flatten(values, options_of(Outer), "f")
    made = build(Outer, flat)
    assert made == Outer(1.0, (3,), (4, "y"), {"a": "b"}, Inner(2), 5)
    assert isinstance(made.rate, float)
    assert build(Outer, flatten(nested(plain(made)), options_of(Outer), "f")) == made
    assert flatten({"inner.width": 2}, options_of(Outer), "f") == {"inner.width": 2}
    assert build(Outer, {}) == Outer()  # what the table of options says: 7, not the 3 of Inner alone


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rat": 1}, "f: unknown key 'rat'; the nearest is 'rate'"),
        ({"inner": {"wdith": 1}}, "f: unknown key 'inner.wdith'; the nearest is 'inner.width'"),
        ({"width": 1}, "f: unknown key 'width'; the nearest is 'inner.width'"),
        ({"innre": {}}, "f: unknown key 'innre'; the nearest is 'inner'"),
        ({"zzzzzz": 1}, "f: unknown key 'zzzzzz'"),
        ({"inner": 3}, "f: inner holds 3; expected a mapping of its settings"),
        ({"inner": {"width": 1}, "inner.width": 2}, "f: inner.width is given twice; expected once"),
        ({"rate": "fast"}, "f: rate is 'fast'; expected a number"),
        ({"rate": math.inf}, "f: rate is inf; expected a finite number"),
        ({"rate": True}, "f: rate is True; expected a number"),
        ({"limit": 1.5}, "f: limit is 1.5; expected a whole number or nothing (null)"),
        ({"limit": True}, "f: limit is True; expected a whole number or nothing (null)"),
        ({"sizes": 3}, "f: sizes is 3; expected a list"),
        ({"sizes": [1, "a"]}, "f: sizes is [1, 'a']; expected a whole number"),
        ({"pair": [1]}, "f: pair is [1]; expected a list of 2"),
        ({"names": {"a": 1}}, "f: names is {'a': 1}; expected a text"),
        ({"names": ["a"]}, "f: names is ['a']; expected a mapping with texts for keys"),
        ({"inner": {"kind": "c"}}, "f: inner.kind is 'c'; expected one of a, b"),
        ({"on": 1}, "f: on is 1; expected true or false"),
        ({"text": 1}, "f: text is 1; expected a text or nothing (null)"),
        ({"rate": "x" * 500}, "expected a number"),
    ],
)
def test_wrong_values_get_a_sentence(values, sentence):
    with pytest.raises(ValueError) as caught:
        flatten(values, options_of(Outer), "f")
    assert sentence in str(caught.value) and len(str(caught.value)) < 160


def test_a_dataclass_refuses_in_its_own_words():
    with pytest.raises(ValueError, match="rate must not be negative"):
        build(Outer, {"rate": -1.0})


def test_nearest_names():
    known = ["trainer.schedule", "encoder.layers", "man_moe"]
    assert nearest("man-moe", known) == "; the nearest is 'man_moe'"
    assert nearest("trainer.layers", known) == "; the nearest is 'encoder.layers'"
    assert nearest("TRAINER.SCHEDULE", known) == "; the nearest is 'trainer.schedule'"
    assert nearest("qqqq", known) == ""


# -- rows that are held out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.07, 1 / 3, 0.9, 0.01, 0.999])
def test_the_share_is_met_wherever_the_file_ends(share):
    held = HeldOut(share, 0, "en")
    chosen = [row in held for row in range(3000)]
    for rows in (1, 7, 10, 99, 1000, 3000):
        assert abs(sum(chosen[:rows]) - share * rows) <= 1.000001
    assert sum(chosen[: round(1 / share)]) >= 1


def test_rows_are_held_out_by_seed_and_language_in_any_order_of_asking():
    def chosen(seed, name, order):
        held = HeldOut(0.1, seed, name)
        return {row for row in order if row in held}

    rows = list(range(500))
    shuffled = random.Random(0).sample(rows, len(rows))
    assert chosen(0, "en", rows) == chosen(0, "en", shuffled)
    assert len({frozenset(chosen(seed, name, rows)) for seed in (0, 1) for name in ("en", "de")}) == 4
    places = [row % 10 for row in chosen(0, "en", rows)]
    assert len(set(places)) > 5, "not at the same place of every stretch"


def test_texts_and_labels_are_cut_alike():
    rows = [[2, 3], [4], [5, 6, 7], [8]]
    keep = torch.tensor([True, False, True, False])
    ragged = Ragged.from_lists(rows)
    for texts in (EncodedTokens(ragged, with_flags=False), EncodedTexts(ragged, None)):
        cut = texts_where(texts, keep)
        inner = cut.codes if isinstance(cut, EncodedTokens) else cut.types
        assert inner.flat.tolist() == [2, 3, 5, 6, 7] and cut.lengths.tolist() == [2, 3]
    tags = labels_where(RaggedLabels(ragged.flat, ragged.offsets), keep)
    assert tags.flat.tolist() == [2, 3, 5, 6, 7] and tags.offsets.tolist() == [0, 2, 5]
    assert labels_where(torch.tensor([5, 6, 7, 8]), keep).tolist() == [5, 7]
    nothing = texts_where(EncodedTokens(ragged, with_flags=True), ~keep & keep)
    assert len(nothing) == 0 and nothing.with_flags
    with pytest.raises(TypeError, match="expected encoded texts, got list"):
        texts_where([], keep)
