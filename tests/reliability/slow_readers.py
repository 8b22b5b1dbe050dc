"""Readers written to be obviously right, not fast: what a whole file comes to, one character at a time.

They follow the documentation of `read_records`, and share no code with what they check.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from slow_lines import Bad, FileFault, Good, Line, Options, classified, cut_lines, tagged, wanted_names
from slow_sentences import read_sentences


@dataclass
class Outcome:
    """What a file comes to; `fault` is the line of a fault of the whole file, or None."""

    rows: list[Good | Bad] = field(default_factory=list)
    fault: bool = False


def slow_read(data: bytes, options: Options) -> Outcome:
    outcome = Outcome()
    try:
        lines = cut_lines(data, options)
        if options.format == "text":
            read_text(lines, options, outcome.rows)
        elif options.format == "jsonl":
            read_json(lines, options, outcome.rows)
        elif options.format in ("conll", "conllu"):
            read_sentences(lines, options, outcome.rows, tabs=None)
        elif options.format == "tsv" and options.task == "tagging" and not names_lists(lines, options):
            read_sentences(lines, options, outcome.rows, tabs=True)
        else:
            rows = tsv_rows(lines) if options.format == "tsv" else csv_rows(lines, options)
            read_table(rows, options, outcome.rows)
    except FileFault:
        outcome.fault = True
    return outcome


def read_text(lines: list[Line], options: Options, out: list[Good | Bad]) -> None:
    for n, line in lines:
        if isinstance(line, Bad):
            out.append(line)
        elif line.strip() and options.task == "classification":
            out.append(Good(n, (), None, line))
        elif line.strip():
            tokens = tuple(line.split())
            out.append(
                Good(n, tokens, None) if len(tokens) <= options.max_tokens else Bad(n, "sentence too long")
            )


# Tables

Row = tuple[int, list[str] | Bad]


def place_of(names: tuple[str, ...], cells: list[str]) -> int | None:
    lower = [cell.strip().lower() for cell in cells]
    return next((lower.index(name) for name in names if name in lower), None)


def names_lists(lines: list[Line], options: Options) -> bool:
    for _, line in lines:
        if isinstance(line, Bad):
            raise FileFault
        if line != "":
            return all(place_of(names, line.split("\t")) is not None for names in wanted_names(options))
    return False


def tsv_rows(lines: list[Line]) -> list[Row]:
    return [(n, line if isinstance(line, Bad) else line.split("\t")) for n, line in lines if line != ""]


def csv_rows(lines: list[Line], options: Options) -> list[Row]:
    rows: list[Row] = []
    at = 0
    while at < len(lines):
        n, line = lines[at]
        if isinstance(line, Bad):
            rows.append((n, line))
            at += 1
        elif line == "":
            at += 1
        else:
            at, row = csv_row(lines, at, options.max_line_bytes)
            rows.append(row)
    return rows


def csv_row(lines: list[Line], at: int, limit: int) -> tuple[int, Row]:
    """The row that begins at `at`, and where the next one does."""
    start, line = lines[at]
    assert isinstance(line, str)
    cells: list[str] = []
    pos, size = 0, len(line)
    while True:
        cell = ""
        if line[pos : pos + 1] != '"':
            while pos < len(line) and line[pos] != ",":
                cell += line[pos]
                pos += 1
        else:
            opened = at
            pos += 1
            while True:
                if pos == len(line):
                    at, pos, cell = at + 1, 0, cell + "\n"
                    if at == len(lines):
                        return opened + 1, (lines[opened][0], Bad(lines[opened][0], "unclosed quote"))
                    n, following = lines[at]
                    if isinstance(following, Bad):
                        return at + 1, (n, following)
                    line = following
                    size += len(line) + 1
                    if size > limit:
                        return opened + 1, (lines[opened][0], Bad(lines[opened][0], "unclosed quote"))
                elif line[pos : pos + 2] == '""':
                    cell, pos = cell + '"', pos + 2
                elif line[pos] == '"':
                    pos += 1
                    break
                else:
                    cell, pos = cell + line[pos], pos + 1
            if pos < len(line) and line[pos] != ",":
                return at + 1, (lines[at][0], Bad(lines[at][0], "text behind a quote"))
        cells.append(cell)
        if pos == len(line):
            return at + 1, (start, cells)
        pos += 1


def read_table(rows: list[Row], options: Options, out: list[Good | Bad]) -> None:
    if not rows:
        return
    first = rows[0][1]
    if isinstance(first, Bad):
        raise FileFault
    found = [place_of(names, first) for names in wanted_names(options)]
    if None not in found:
        names = [cell.strip() for cell in first]
        if any(names.count(names[place]) > 1 for place in found if place is not None):
            raise FileFault
        places, width, rows = found, len(first), rows[1:]
    elif any(place is not None for place in found):
        raise FileFault
    else:
        places, width = [0, 1][: len(found)], 2 if options.labelled else len(first)
    for n, cells in rows:
        if isinstance(cells, Bad):
            out.append(cells)
        elif len(cells) != width:
            out.append(Bad(n, "extra columns" if len(cells) > width else "missing columns"))
        else:
            values = [cells[place] for place in places if place is not None]
            if options.task == "tagging":
                out.append(tagged(n, *spaced(values[0], values[1] if options.labelled else None), options))
            else:
                out.append(classified(n, values[0], values[1] if options.labelled else None, options))


def spaced(tokens: str, tags: str | None) -> tuple[list[str], list[str] | None]:
    if tags is None:
        return [token for token in tokens.split(" ") if token != ""], None
    some, others = tokens.split(" "), tags.split(" ")
    if len(some) == len(others):
        gaps = [tag for token, tag in zip(some, others, strict=True) if token == ""]
        if set(gaps) <= {"", "O"}:
            kept = [i for i, token in enumerate(some) if token != ""]
            return [some[i] for i in kept], [others[i] for i in kept]
    return [token for token in some if token != ""], [tag for tag in others if tag != ""]


# JSON lines


class Twice(ValueError):
    pass


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise Twice
    return dict(pairs)


def constant(name: str) -> Any:
    raise Twice


def read_json(lines: list[Line], options: Options, out: list[Good | Bad]) -> None:
    for n, line in lines:
        if isinstance(line, Bad):
            out.append(line)
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=unique, parse_constant=constant)
        except (ValueError, RecursionError):
            out.append(Bad(n, "not JSON"))
            continue
        out.append(json_row(n, value, options))


def json_row(n: int, value: Any, options: Options) -> Good | Bad:
    if not isinstance(value, dict):
        return Bad(n, "no object")
    values = []
    for names in wanted_names(options):
        held = [name for name in names if name in value]
        if not held:
            return Bad(n, "missing key")
        values.append(value[held[0]])
    for one in values:
        for text in one if isinstance(one, list) else [one]:
            if isinstance(text, str) and "\0" in text:
                return Bad(n, "NUL character")
            if isinstance(text, str) and any(0xD800 <= ord(char) < 0xE000 for char in text):
                return Bad(n, "lone surrogate")
    if options.task == "tagging":
        return json_tagged(n, values, options)
    if not isinstance(values[0], str):
        return Bad(n, "no text")
    if not values[0].strip():
        return Bad(n, "no text")
    if options.labelled and type(values[1]) not in (str, int):
        return Bad(n, "no label")
    return classified(n, values[0], str(values[1]) if options.labelled else None, options)


def json_tagged(n: int, values: list[Any], options: Options) -> Good | Bad:
    if not isinstance(values[0], list):
        return Bad(n, "no tokens")
    if any(not isinstance(token, str) or token == "" for token in values[0]):
        return Bad(n, "no token")
    if not options.labelled:
        return tagged(n, values[0], None, options)
    if not isinstance(values[1], list):
        return Bad(n, "no tags")
    if any(type(tag) not in (str, int) for tag in values[1]):
        return Bad(n, "no tag")
    return tagged(n, values[0], [str(tag) for tag in values[1]], options)
