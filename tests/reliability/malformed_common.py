"""Damage that any file of lines may have: bytes, line ends, compression, what stands at the path."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A file and what becomes of it.

    Attributes:
        content: its bytes, or what puts something at a path.
        words: what the sentence of strict mode holds, each of them; empty: the file is good.
        line: the line that the sentence names; None: the file as a whole.
        rows: rows out and rejected in skip mode; None: an error in skip mode as well.
        holds: what one of the records holds.
        options: of the reader, beside those of the kind.
        name: of the file, if not that of the kind.
    """

    content: bytes | Callable[[Path], object]
    words: tuple[str, ...] = ()
    line: int | None = None
    rows: tuple[int, int] | None = None
    holds: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Kind:
    """A reader with a good file: four rows of one or more lines, each with a ``qq`` in its first line."""

    name: str
    file: str
    options: dict[str, Any]
    head: tuple[bytes, ...]
    rows: tuple[tuple[bytes, ...], ...]
    label: bytes

    def lines(self) -> list[bytes]:
        return [*self.head, *(line for row in self.rows for line in row)]

    def line(self, row: int) -> int:
        """Number of a row's first line."""
        return 1 + len(self.head) + sum(len(r) for r in self.rows[:row])

    def whole(self, end: bytes = b"\n") -> bytes:
        return b"".join(line + end for line in self.lines())

    def edit(self, row: int, change: Callable[[bytes], bytes]) -> bytes:
        """The file with the first line of a row changed."""
        lines = self.lines()
        at = self.line(row) - 1
        lines[at] = change(lines[at])
        return b"".join(line + b"\n" for line in lines)

    def put(self, row: int, piece: bytes) -> bytes:
        """The file with ``qq`` of a row replaced."""
        return self.edit(row, lambda line: line.replace(b"qq", piece, 1))


def conllu(*words: tuple[str, str]) -> tuple[bytes, ...]:
    rows = [f"{i}\t{word}\t_\t{tag}\t_\t_\t0\troot\t_\t_" for i, (word, tag) in enumerate(words, 1)]
    return (*(row.encode() for row in rows), b"")


KINDS = [
    Kind(
        "tsv",
        "f.tsv",
        {},
        (b"text\tlabel",),
        ((b"one qq\tpos",), (b"two qq!\tneg",), (b"three qq\tpos",), (b"four qq\tneg",)),
        b"neg",
    ),
    Kind(
        "csv",
        "f.csv",
        {},
        (b"text,label",),
        ((b"one qq,pos",), (b'"two qq!",neg',), (b"three qq,pos",), (b'"four, qq",neg',)),
        b"neg",
    ),
    Kind(
        "jsonl",
        "f.jsonl",
        {},
        (),
        (
            (b'{"text": "one qq", "label": "pos"}',),
            (b'{"text": "two qq!", "label": "neg"}',),
            (b'{"label": "pos", "text": "three qq", "id": 3}',),
            (b'{"text": "four qq", "label": "neg"}',),
        ),
        b"neg",
    ),
    Kind(
        "conll",
        "f.conll",
        {"task": "tagging"},
        (),
        (
            (b"qq\tO", b"in\tO", b""),
            (b"qq\tB-LOC", b"!\tO", b""),
            (b"qq\tO", b""),
            (b"qq\tB-LOC", b"Rome\tI-LOC", b""),
        ),
        b"B-LOC",
    ),
    Kind(
        "conllu",
        "f.conllu",
        {"task": "tagging"},
        (),
        (
            conllu(("qq", "NOUN"), ("in", "ADP")),
            conllu(("qq", "VERB"), ("!", "PUNCT")),
            conllu(("qq", "NOUN")),
            conllu(("qq", "VERB"), ("it", "PRON")),
        ),
        b"VERB",
    ),
    Kind(
        "text",
        "f.txt",
        {"labelled": False},
        (),
        ((b"one qq",), (b"two qq!",), (b"three qq",), (b"four qq",)),
        b"",
    ),
    Kind(
        "lists",
        "f.tsv",
        {"task": "tagging"},
        (b"intent\ttokens\tslots",),
        (
            (b"ask\tqq in Rome\tO O B-LOC",),
            (b"say\tqq !\tB-LOC O",),
            (b"ask\tqq\tO",),
            (b"say\tqq it\tB-LOC O",),
        ),
        b"B-LOC",
    ),
]


def line_cases(kind: Kind) -> dict[str, Case]:
    """Bytes within lines."""
    first, second, last = kind.line(0), kind.line(1), kind.line(3)
    at = kind.lines()[second - 1].index(b"qq")
    spoilt = {
        "latin-1": (b"na\xefve", (f"byte 0xef at byte {at + 3} of the line", "not UTF-8", "latin-1")),
        "lone continuation byte": (b"\x80qq", ("byte 0x80", "not UTF-8")),
        "byte FF": (b"q\xffq", ("byte 0xff", "not UTF-8")),
        "overlong encoding of a slash": (b"\xc0\xaf", ("byte 0xc0", "not UTF-8")),
        "surrogate in UTF-8": (b"\xed\xa0\x80", ("byte 0xed", "not UTF-8")),
        "NUL in two bytes": (b"\xc0\x80", ("byte 0xc0", "not UTF-8")),
        "surrogate pair in UTF-8": (b"\xed\xa0\xbd\xed\xb8\x80", ("byte 0xed", "not UTF-8")),
        "beyond U+10FFFF": (b"\xf4\x90\x80\x80", ("byte 0xf4", "not UTF-8")),
        "character cut in two": (b"q\xe2\x82", ("byte 0xe2", "not UTF-8")),
        "NUL": (b"q\0q", ("NUL character", "UTF-16")),
        "NUL bytes of a crash": (b"\0" * 300, ("NUL character",)),
        "carriage return": (b"q\rq", ("carriage return", "LF or CRLF")),
    }
    cases = {name: Case(kind.put(1, new), words, second, (3, 1)) for name, (new, words) in spoilt.items()}
    cases["latin-1 in the first row"] = Case(kind.put(0, b"\xe9"), ("not UTF-8",), first, (3, 1))
    cases["latin-1 in the last row"] = Case(kind.put(3, b"\xe9"), ("not UTF-8",), last, (3, 1))
    both = kind.put(1, b"\xe9").splitlines(keepends=True)
    both[kind.line(2) - 1] = b"\xff" + both[kind.line(2) - 1]
    cases["not UTF-8 in two rows"] = Case(b"".join(both), ("byte 0xe9", "not UTF-8"), second, (2, 2))
    cases["two carriage returns and LF"] = Case(
        kind.edit(1, lambda x: x + b"\r\r"), ("carriage return",), second, (3, 1)
    )
    cases["byte order mark on a later line"] = Case(
        kind.edit(1, lambda x: b"\xef\xbb\xbf" + x), ("byte order mark", "were files joined"), second, (3, 1)
    )
    cases["latin-1, said"] = Case(kind.put(1, b"na\xefve"), holds="naïve", options={"encoding": "latin-1"})
    cases["windows-1252, said"] = Case(kind.put(1, b"q\x80q"), holds="q€q", options={"encoding": "cp1252"})
    cases["not windows-1252, though said"] = Case(
        kind.put(1, b"q\x81q"),
        ("0x81", "not CP1252", "utf-8"),
        second,
        (3, 1),
        options={"encoding": "cp1252"},
    )
    kept = {
        "line separator": "\u2028",
        "paragraph separator": "\u2029",
        "next line": "\x85",
        "vertical tab": "\x0b",
        "form feed": "\x0c",
        "file separator": "\x1c",
        "record separator": "\x1e",
        "escape": "\x1b",
        "delete": "\x7f",
        "no-break space": "\xa0",
        "ideographic space": "\u3000",
        "byte order mark": "\ufeff",
        "replacement": "\ufffd",
        "noncharacter": "\uffff",
        "emoji": "\U0001f469\u200d\U0001f680",
        "right to left": "\u202eabc",
        "combining": "e\u0301" * 20,
    }
    for name, char in kept.items():
        content = kind.put(1, f"q{char}q".encode())
        if kind.name == "jsonl" and char < " ":
            cases[f"{name} kept"] = Case(content, ("not JSON", "control character"), second, (3, 1))
        else:
            cases[f"{name} kept"] = Case(content, holds=f"q{char}q")
    longest = max(map(len, kind.lines()))
    small = {"max_line_bytes": longest}
    fits = b"q" * (longest - len(kind.lines()[second - 1]) + 2)
    cases["line of exactly the limit"] = Case(kind.put(1, fits), holds="qq", options=small)
    cases["line of exactly the limit with CRLF"] = Case(
        kind.put(1, fits).replace(b"\n", b"\r\n"), holds="qq", options=small
    )
    cases["line beyond the limit"] = Case(
        kind.put(1, fits + b"q"), ("more than", "bytes", "max_line_bytes"), second, (3, 1), options=small
    )
    cases["first line of a row far beyond the limit"] = Case(
        kind.put(0, b"q" * 2_000_000),
        ("more than 1,000 bytes",),
        first,
        (3, 1),
        options={"max_line_bytes": 1000},
    )
    cases["endless last line"] = Case(
        kind.whole() + b"q" * 2_000_000,
        ("more than 1,000 bytes",),
        len(kind.lines()) + 1,
        (4, 1),
        options={"max_line_bytes": 1000},
    )
    if kind.label:
        near = kind.label.decode()
        cases["unknown label"] = Case(
            kind.edit(1, lambda x: x.replace(kind.label, kind.label + b"x")),
            ("unknown", f"{near}x", f"did you mean {near!r}", "one of"),
            second,
            (3, 1),
            options={"allowed_labels": known(kind)},
        )
        cases["label in another case"] = Case(
            kind.edit(1, lambda x: x.replace(kind.label, kind.label.swapcase())),
            ("unknown", f"did you mean {near!r}"),
            second,
            (3, 1),
            options={"allowed_labels": known(kind)},
        )
        cases["unlabelled reading takes any label"] = Case(
            kind.edit(1, lambda x: x.replace(kind.label, b"whatever")),
            holds="qq",
            options={"labelled": False, "allowed_labels": ["no"]},
        )
    return cases


def known(kind: Kind) -> list[str]:
    return {"tsv": ["pos", "neg"], "csv": ["pos", "neg"], "jsonl": ["pos", "neg"]}.get(
        kind.name, ["O", "B-LOC", "I-LOC", "NOUN", "VERB", "ADP", "PUNCT", "PRON"]
    )


def file_cases(kind: Kind) -> dict[str, Case]:
    """Files as a whole: beginning, line ends, end, compression."""
    good, lines = kind.whole(), kind.lines()
    text = good.decode()
    mark = b"\xef\xbb\xbf"
    packed = gzip.compress(good, mtime=0)
    damaged = packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]
    nothing = ("no rows", "at least one")
    zipped = kind.file + ".gz"
    mac = b"\r".join(lines)
    cases = {
        "as it is": Case(good, holds="qq"),
        "CRLF": Case(kind.whole(b"\r\n"), holds="qq"),
        "CRLF on the first line alone": Case(good.replace(b"\n", b"\r\n", 1), holds="qq"),
        "no line end at the end": Case(good.rstrip(b"\n"), holds="qq"),
        "carriage return alone at the end": Case(good.rstrip(b"\n") + b"\r", holds="qq"),
        "blank lines at the end": Case(good + b"\n\n\n", holds="qq"),
        "blank lines at the start": Case(b"\n\n" + good, holds="qq"),
        "blank lines with CRLF at the end": Case(good + b"\r\n\r\n", holds="qq"),
        "byte order mark": Case(mark + good, holds="qq"),
        "byte order mark and CRLF": Case(mark + kind.whole(b"\r\n"), holds="qq"),
        "byte order mark of UTF-8 in latin-1": Case(
            mark + good, ("UTF-8 byte order mark", "read as iso8859-1"), 1, options={"encoding": "latin-1"}
        ),
        "UTF-16 little endian": Case(b"\xff\xfe" + text.encode("utf-16-le"), ("UTF-16", "iconv"), 1),
        "UTF-16 big endian": Case(b"\xfe\xff" + text.encode("utf-16-be"), ("UTF-16", "UTF-8"), 1),
        "UTF-32": Case(text.encode("utf-32"), ("UTF-16", "UTF-8"), 1),
        "empty": Case(b"", nothing, None, (0, 0)),
        "only line feeds": Case(b"\n" * 50, nothing, None, (0, 0)),
        "only CRLF": Case(b"\r\n" * 9, nothing, None, (0, 0)),
        "only a byte order mark": Case(mark, nothing, None, (0, 0)),
        "gzip": Case(packed, holds="qq", name=zipped),
        "gzip in capitals": Case(packed, holds="qq", name=kind.file.upper() + ".GZ"),
        "gzip of two members": Case(
            gzip.compress(good[:20]) + gzip.compress(good[20:]), holds="qq", name=zipped
        ),
        "gzip padded with zeros": Case(packed + b"\0" * 512, holds="qq", name=zipped),
        "gzip of nothing": Case(gzip.compress(b""), nothing, None, (0, 0), name=zipped),
        "gzip cut in its head": Case(packed[:7], ("end in the middle", "whole file"), 1, name=zipped),
        "gzip cut by one byte": Case(packed[:-1], ("end in the middle",), len(lines) + 1, name=zipped),
        "gzip cut in its check sum": Case(packed[:-8], ("end in the middle",), len(lines) + 1, name=zipped),
        "gzip with a wrong check sum": Case(damaged, ("damaged", "incorrect data check"), 1, name=zipped),
        "gzip with text behind it": Case(
            packed + b"more\n", ("something else follows",), len(lines) + 1, name=zipped
        ),
        "gzip that is text": Case(good, ("ends in .gz", "not gzip"), 1, name=zipped),
        "gzip that is empty": Case(b"", ("empty", "gzip"), 1, name=zipped),
        "gzip in gzip": Case(gzip.compress(packed), ("gzip data", ".gz"), 1, name=zipped),
        "gzip without the suffix": Case(packed, ("gzip data", ".gz"), 1),
        "bzip2": Case(bz2.compress(good), ("bzip2", "gzip"), 1),
        "xz": Case(lzma.compress(good), ("xz data",), 1),
        "zip or Excel": Case(b"PK\x03\x04" + bytes(60), ("zip archive", ".xlsx"), 1),
        "Parquet": Case(b"PAR1" + bytes(60), ("Parquet",), 1),
        "Arrow": Case(b"ARROW1\0\0" + bytes(60), ("Arrow",), 1),
        "a folder": Case(Path.mkdir, ("folder",), None, options={"format": "auto"}),
        "a folder where a format is said": Case(
            Path.mkdir, ("is a folder", "a file"), None, options={"format": format_of(kind)}
        ),
        "nothing": Case(lambda path: None, ("no such file",), None),
        "a near name": Case(
            lambda path: path.with_name("g" + path.name).touch(),
            ("no such file", f"did you mean 'g{kind.file}'"),
            None,
        ),
        "a dangling link": Case(lambda path: path.symlink_to("nowhere"), ("no such file",), None),
        "a link to itself": Case(
            lambda path: path.symlink_to(path), ("cannot be opened", "symbolic links"), None
        ),
        "no folder": Case(lambda path: None, ("no such file, nor a folder",), None, name=f"no/{kind.file}"),
        "a name too long": Case(
            lambda path: None, ("cannot be opened", "too long"), None, name="f" * 300 + kind.file
        ),
        "a suffix misspelt": Case(
            good, ("suffix", "names no format", "expected"), None, name=kind.file + "x"
        ),
        "no suffix": Case(good, ("no suffix",), None, name="f"),
    }
    wide = text.encode("utf-16-le")
    if kind.head:
        cases["only the header"] = Case(lines[0] + b"\n", nothing, None, (0, 0))
        cases["UTF-16 without a mark"] = Case(wide, ("NUL character", "UTF-16"), 1)
        cases["line ends of the Mac of old"] = Case(mac, ("carriage return",), 1)
        cases["latin-1 in the header"] = Case(b"\xe9" + good, ("not UTF-8",), 1)
        cases["two byte order marks"] = Case(mark + mark + good, ("byte order mark",), 1)
        options = {"allowed_labels": known(kind)}
        cases["the file twice"] = Case(good + good, ("unknown",), len(lines) + 1, (8, 1), options=options)
    else:
        # In files of sentences the blank lines are bad, too, so that nothing ends the one that all lines make.
        rows = 1 if kind.name in ("conll", "conllu") else len(lines) + 1
        cases["UTF-16 without a mark"] = Case(wide, ("NUL character", "UTF-16"), 1, (0, rows))
        cases["line ends of the Mac of old"] = Case(mac, ("carriage return",), 1, (0, 1))
        cases["two byte order marks"] = Case(mark + mark + good, ("byte order mark",), 1, (3, 1))
    return cases


def format_of(kind: Kind) -> str:
    return {"lists": "tsv"}.get(kind.name, kind.name)
