"""JSON lines: an object per line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from xferkit.data.errors import close_name, shown, shown_list
from xferkit.data.readers.blocks import Block
from xferkit.data.readers.job import Flaw, ReadJob, Tally
from xferkit.data.readers.labels import LabelTable
from xferkit.data.readers.table import NO_TEXT, TagChecker, WantedColumn, wanted_columns
from xferkit.data.records import Record

__all__ = ["ValueChecker", "decode_object", "kind_of", "make_decoder", "read_jsonl", "unwritable"]

_EXPECTED = "a JSON object on each line"
_ARRAY = f"{_EXPECTED} (`jq -c '.[]'` makes that of an array)"


def read_jsonl(blocks: Iterator[Block], job: ReadJob, tally: Tally) -> Iterator[Record]:
    """A record per object; blank lines are none."""
    checker = ValueChecker(job, "key")
    decoder = make_decoder()
    for block in blocks:
        flaws = block.flaws
        for number, line in enumerate(block.lines, block.start):
            if flaws and number in flaws:
                found: Record | Flaw = flaws[number]
            elif not line or line.isspace():
                continue
            else:
                found = _record(decoder, checker, number, line)
            tally.rows_in += 1
            if isinstance(found, Flaw):
                tally.reject(number, found)
                continue
            tally.rows_out += 1
            yield found


def _record(decoder: json.JSONDecoder, checker: ValueChecker, number: int, line: str) -> Record | Flaw:
    value = decode_object(decoder, line)
    if isinstance(value, Flaw):
        return value
    names = checker.find(value)
    if isinstance(names, Flaw):
        return names
    return checker.values(number, [value[name] for name in names], "\\u" in line)


def make_decoder() -> json.JSONDecoder:
    """A decoder that refuses what is no JSON, and a key twice."""
    return json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


class _NotJSON(ValueError):
    """JSON that Python's reader would take."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _NotJSON(f"the key {shown(twice)} twice in an object")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise _NotJSON(f"{name}, which is no JSON")


def decode_object(decoder: json.JSONDecoder, line: str) -> dict[str, Any] | Flaw:
    """The object of a line, or what is wrong with it."""
    try:
        value = decoder.decode(line)
    except json.JSONDecodeError as error:
        expected = _ARRAY if line.startswith("[") else _EXPECTED
        return Flaw("not JSON", f"not JSON at column {error.colno} ({error.msg})", expected)
    except RecursionError:
        return Flaw("not JSON", "JSON nested too deeply", _EXPECTED)
    except _NotJSON as error:
        return Flaw("not JSON", f"{error}", _EXPECTED)
    except ValueError:
        # Python refuses to convert integers of thousands of digits, which takes quadratic time.
        return Flaw("not JSON", "a number with too many digits", _EXPECTED)
    if isinstance(value, dict):
        return value
    expected = _ARRAY if isinstance(value, list) else _EXPECTED
    return Flaw("no object", f"{kind_of(value)} instead of an object", expected)


def kind_of(value: object) -> str:
    """What a value is, for a sentence."""
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    number = "a number" if isinstance(value, int | float) else f"of the type {type(value).__name__}"
    return kinds.get(type(value), number)


class ValueChecker:
    """Examples that come as typed values under names: JSON objects, rows of a data set.

    Args:
        job: the reading.
        kind: ``"key"`` or ``"column"``, for the sentences.
    """

    def __init__(self, job: ReadJob, kind: str) -> None:
        self._wanted = wanted_columns(job)
        self._tagging = job.task == "tagging"
        self._labels = LabelTable("label", job.allowed_labels)
        self._tagger = TagChecker(job)
        self._kind = kind
        self._hints = 10

    def find(self, value: dict[str, Any]) -> list[str] | Flaw:
        """The names under which the wanted values are there."""
        found = []
        for column in self._wanted:
            if isinstance(column.given, str):
                name = column.given if column.given in value else None
            else:
                name = next((n for n in column.names if n in value), None)
            if name is None:
                return self._missing(column, value)
            found.append(name)
        return found

    def values(self, line: int, values: list[Any], odd: bool) -> Record | Flaw:
        """The record of a text or tokens and, if wanted, a label or tags.

        ``odd``: strings may hold what no text file can hold, which is looked for then.
        """
        for value in values:
            if isinstance(value, Flaw):
                return value
        if odd:
            flaw = unwritable(values)
            if flaw is not None:
                return flaw
        return self._tagged(line, values) if self._tagging else self._classified(line, values)

    def _missing(self, column: WantedColumn, value: dict[str, Any]) -> Flaw:
        kind = self._kind
        given = column.given if isinstance(column.given, str) else None
        wanted = shown(given) if given else f"for the {column.argument}"
        near = ""
        if self._hints:
            # Looking for the nearest name takes longer than reading the row.
            self._hints -= 1
            near = close_name(given or column.names[0], value)
        among = f"among {shown_list(value)}" if value else "in an empty object"
        expected = (
            f"the {kind} {given}"
            if given
            else f"the {kind} {' or '.join(column.names)}, or {column.otherwise} with the name of another {kind}"
        )
        return Flaw(f"missing {kind}", f"no {kind} {wanted} {among}{near}", expected)

    def _classified(self, line: int, values: list[Any]) -> Record | Flaw:
        text = values[0]
        if not isinstance(text, str):
            return Flaw("no text", f"the text is {kind_of(text)}", "a string")
        if not text or text.isspace():
            return NO_TEXT
        if len(values) == 1:
            return Record((), None, line, text)
        raw = _label_text(values[1])
        if raw is None:
            return Flaw("no label", f"the label is {kind_of(values[1])}", "a string or an integer")
        label = self._labels.check(raw)
        return label if isinstance(label, Flaw) else Record((), label, line, text)

    def _tagged(self, line: int, values: list[Any]) -> Record | Flaw:
        tokens = values[0]
        if not isinstance(tokens, list):
            return Flaw("no tokens", f"the tokens are {kind_of(tokens)}", "a list of strings")
        for token in tokens:
            if not isinstance(token, str) or not token:
                what = "an empty string" if token == "" else kind_of(token)
                return Flaw("no token", f"a token is {what}", "strings of at least one character")
        if len(values) == 1:
            return self._tagger.record(line, tokens, None)
        if not isinstance(values[1], list):
            return Flaw("no tags", f"the tags are {kind_of(values[1])}", "a list with a tag for each token")
        tags = [_label_text(tag) for tag in values[1]]
        for tag, raw in zip(values[1], tags, strict=True):
            if isinstance(tag, Flaw):
                return tag
            if raw is None:
                return Flaw("no tag", f"a tag is {kind_of(tag)}", "strings or integers")
        return self._tagger.record(line, tokens, [raw for raw in tags if raw is not None])


def _label_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    # True is an int to Python, and no label.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def unwritable(values: list[Any]) -> Flaw | None:
    r"""``\ud800`` and ``\u0000`` are JSON, but no text that could be written again or that other readers take."""
    for value in values:
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            if "\0" in text:
                return Flaw("NUL character", r"a NUL character (\u0000) in a string", "text")
            try:
                text.encode()
            except UnicodeEncodeError:
                return Flaw("lone surrogate", "half of a surrogate pair in a string", "whole characters")
    return None
