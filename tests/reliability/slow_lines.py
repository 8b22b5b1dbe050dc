"""Lines, labels and rows as the slow readers see them: the whole file in memory, one byte after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TEXT, LABEL = ("text", "sentence", "utterance", "tokens"), ("label", "class", "intent")
TOKENS, TAGS = ("tokens", "words"), ("tags", "slots", "labels", "ner_tags", "pos_tags", "upos")
MAGICS = (
    b"\xff\xfe",
    b"\xfe\xff",
    b"\x1f\x8b",
    b"PK\x03\x04",
    b"BZh9",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd",
    b"PAR1",
    b"ARROW1",
)


class FileFault(Exception):
    """The file as a whole cannot be read."""


@dataclass
class Options:
    format: str
    task: str = "classification"
    labelled: bool = True
    allowed: tuple[str, ...] | None = None
    max_line_bytes: int = 16 * 2**20
    max_tokens: int = 10_000


@dataclass
class Bad:
    line: int
    reason: str


@dataclass
class Good:
    line: int
    tokens: tuple[str, ...]
    labels: Any
    text: str = ""


Line = tuple[int, str | Bad]


def cut_lines(data: bytes, options: Options) -> list[Line]:
    if data.startswith(MAGICS):
        raise FileFault
    pieces = data.split(b"\n")
    if pieces[-1] == b"":
        pieces.pop()
    return [(n, one_line(n, piece, options)) for n, piece in enumerate(pieces, 1)]


def one_line(n: int, raw: bytes, options: Options) -> str | Bad:
    if raw.endswith(b"\r"):
        raw = raw[:-1]
    if len(raw) > options.max_line_bytes:
        return Bad(n, "line too long")
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Bad(n, "not UTF-8")
    if n == 1 and line[:1] == "\ufeff":
        line = line[1:]
    if "\0" in line:
        return Bad(n, "NUL character")
    if "\r" in line:
        return Bad(n, "stray carriage return")
    if line[:1] == "\ufeff":
        return Bad(n, "stray byte order mark")
    return line


def label_of(raw: str, options: Options, what: str, missing: str = "") -> str | Bad:
    label = raw.strip()
    if label in ("", missing):
        return Bad(0, f"no {what}")
    if what == "tag" and any(char.isspace() for char in label):
        return Bad(0, "tag with spaces")
    if options.allowed is not None and label not in options.allowed:
        return Bad(0, f"unknown {what}")
    return label


def tagged(n: int, tokens: list[str], tags: list[str] | None, options: Options) -> Good | Bad:
    if not tokens:
        return Bad(n, "no tokens")
    if len(tokens) > options.max_tokens:
        return Bad(n, "sentence too long")
    if tags is None:
        return Good(n, tuple(tokens), None)
    if len(tokens) != len(tags):
        return Bad(n, "tags differ in number")
    found = [label_of(tag, options, "tag") for tag in tags]
    for one in found:
        if isinstance(one, Bad):
            return Bad(n, one.reason)
    return Good(n, tuple(tokens), tuple(found))


def classified(n: int, text: str, label: str | None, options: Options) -> Good | Bad:
    if not text.strip():
        return Bad(n, "no text")
    if label is None:
        return Good(n, (), None, text)
    found = label_of(label, options, "label")
    return Bad(n, found.reason) if isinstance(found, Bad) else Good(n, (), found, text)


def wanted_names(options: Options) -> list[tuple[str, ...]]:
    both = [TOKENS, TAGS] if options.task == "tagging" else [TEXT, LABEL]
    return both if options.labelled else both[:1]
