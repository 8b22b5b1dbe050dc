"""Seeded damage to good files, a file and its options per seed."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from slow_lines import Options

WORDS = (
    "Regen",
    "naïve",
    "日本語",
    "qq",
    "a",
    "#",
    "O",
    "B-LOC",
    "½",
    "don't",
    "x\u00a0y",
    "-",
    "emoji\U0001f600",
    "Wort",
)
LABELS = ("pos", "neg", "neu")
TAGS = ("O", "B-LOC", "I-LOC", "NOUN")


@dataclass(frozen=True)
class Fuzzed:
    data: bytes
    options: Options
    block_bytes: int


def fuzzed(kind: str, seed: int) -> Fuzzed:
    """The damaged file of a seed: nought to four kinds of damage, tight or usual limits, small or usual blocks."""
    draw = random.Random(f"{kind}/{seed}")
    data = GOOD[kind](draw)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        data = draw.choice(DAMAGES)(draw, data)
    name, _, task = kind.partition(" ")
    options = Options(
        name,
        task or "classification",
        labelled=name != "text" and draw.random() < 0.8,
        allowed=draw.choice((None, None, LABELS + TAGS, LABELS[:2] + TAGS[:2])),
        max_line_bytes=draw.choice((16 * 2**20, 16 * 2**20, 200, 60)),
        max_tokens=draw.choice((10_000, 10_000, 6, 3)),
    )
    return Fuzzed(data, options, draw.choice((16, 61, 2**18)))


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))


def header(draw: random.Random, names: tuple[str, ...], mark: str) -> str:
    return mark.join(names) + "\n" if draw.random() < 0.5 else ""


def good_tsv(draw: random.Random) -> bytes:
    rows = [f"{text(draw)}\t{draw.choice(LABELS)}\n" for _ in range(draw.randint(1, 9))]
    return (header(draw, ("text", "label"), "\t") + "".join(rows)).encode()


def good_csv(draw: random.Random) -> bytes:
    rows = []
    for _ in range(draw.randint(1, 9)):
        cell = text(draw)
        if draw.random() < 0.6:
            cell = '"' + cell + draw.choice(("", ",", '""', "\n", '""\n,')) + text(draw) + '"'
        rows.append(f"{cell},{draw.choice(LABELS)}\n")
    return (header(draw, ("text", "label"), ",") + "".join(rows)).encode()


def good_jsonl(draw: random.Random) -> bytes:
    rows = [
        {"text": text(draw), "label": draw.choice((*LABELS, 1)), "id": i} for i in range(draw.randint(1, 7))
    ]
    return "".join(json.dumps(row, ensure_ascii=draw.random() < 0.3) + "\n" for row in rows).encode()


def sentence(draw: random.Random) -> list[tuple[str, str]]:
    return [(draw.choice(WORDS), draw.choice(TAGS)) for _ in range(draw.randint(1, 6))]


def good_json_tagging(draw: random.Random) -> bytes:
    rows = []
    for _ in range(draw.randint(1, 6)):
        pairs = sentence(draw)
        rows.append(json.dumps({"tokens": [t for t, _ in pairs], "tags": [t for _, t in pairs]}) + "\n")
    return "".join(rows).encode()


def good_lists(draw: random.Random, mark: str) -> bytes:
    rows = [mark.join(("intent", "tokens", "slots")) + "\n"]
    for _ in range(draw.randint(1, 6)):
        pairs = sentence(draw)
        cells = ("ask", " ".join(t for t, _ in pairs), " ".join(t for _, t in pairs))
        rows.append(mark.join(cells) + "\n")
    return "".join(rows).encode()


def good_conll(draw: random.Random) -> bytes:
    mark = draw.choice(("\t", "\t", " "))
    middle = draw.choice(("", f"X{mark}", f"-X-{mark}Y{mark}"))
    parts = []
    if draw.random() < 0.2:
        parts.append(f"-DOCSTART-{mark}{middle}O\n\n")
    for _ in range(draw.randint(1, 5)):
        pairs = sentence(draw)
        parts.append("".join(f"{t}{mark}{middle}{tag}\n" for t, tag in pairs) + "\n")
    return "".join(parts).encode()


def good_conllu(draw: random.Random) -> bytes:
    parts = []
    if draw.random() < 0.1:
        parts.append("# global.columns = ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC\n")
    for i in range(draw.randint(1, 4)):
        parts.append(f"# sent_id = {i}\n")
        for j, (token, tag) in enumerate(sentence(draw), 1):
            if draw.random() < 0.1:
                parts.append(f"{j}-{j + 1}\tx" + "\t_" * 8 + "\n")
            parts.append(f"{j}\t{token}\t_\t{tag}\t_\t_\t0\troot\t_\t_\n")
            if draw.random() < 0.05:
                parts.append(f"{j}.1\te" + "\t_" * 8 + "\n")
        parts.append("\n")
    return "".join(parts).encode()


def good_text(draw: random.Random) -> bytes:
    return "".join(text(draw) + "\n" for _ in range(draw.randint(1, 9))).encode()


GOOD: dict[str, Callable[[random.Random], bytes]] = {
    "tsv": good_tsv,
    "csv": good_csv,
    "jsonl": good_jsonl,
    "jsonl tagging": good_json_tagging,
    "tsv tagging": lambda draw: good_lists(draw, "\t") if draw.random() < 0.6 else good_conll(draw),
    "csv tagging": lambda draw: good_lists(draw, ","),
    "conll tagging": good_conll,
    "conllu tagging": good_conllu,
    "text": good_text,
    "text tagging": good_text,
}


def flip(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data) or 1)
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :] if data else data


def cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randint(0, len(data))]


def remove(draw: random.Random, data: bytes) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + data[at + draw.randint(1, 12) :]


def splice(draw: random.Random, data: bytes) -> bytes:
    at, start = draw.randint(0, len(data)), draw.randint(0, len(data))
    return data[:at] + data[start : start + draw.randint(1, 40)] + data[at:]


def lines(draw: random.Random, data: bytes) -> bytes:
    parts = data.split(b"\n")
    i, j = draw.randrange(len(parts)), draw.randrange(len(parts))
    what = draw.randrange(4)
    if what == 0:
        parts.insert(j, parts[i])
    elif what == 1:
        del parts[i]
    elif what == 2:
        parts[i], parts[j] = parts[j], parts[i]
    else:
        parts.insert(i, b"")
    return b"\n".join(parts)


def crlf(draw: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n", draw.choice((1, 2, -1)))


def mark_first(draw: random.Random, data: bytes) -> bytes:
    return b"\xef\xbb\xbf" + data


INSERTED = (
    b"\0",
    b"\r",
    b"\xff",
    b"\xe9",
    b"\x80",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\x0b",
    b"\x1c",
    b"\xc2\xa0",
    b"\t",
    b"\t\t",
    b"\n",
    b"\n\n",
    b" ",
    b"  ",
    b",",
    b'"',
    b'""',
    b'"""',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"#",
    b"# ",
    b"-DOCSTART-",
    b"-DOCSTART- -X- O\n",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"9" * 5000,
    b"[" * 100_000,
    b"null",
    b"true",
    b"{}",
    b"{",
    b"}",
    b"]",
    b"1-2\t",
    b"1.1\t",
    b"_",
    b"\xff\xfe",
    b"x" * 250,
    b"x\tO\n" * 8,
    b"text\tlabel\n",
    b"tokens\tslots\n",
    b"token\ttag\n",
    b'{"text": "a", "text": "b", "label": "pos"}\n',
    b'{"text": NaN, "label": "pos"}\n',
    b"# global.columns = ID FORM UPOS\n",
    b"# global.columns = FORM UPOS\n",
    b"pos",
    b"unheard-of",
)


def insert(draw: random.Random, data: bytes) -> bytes:
    at = draw.randint(0, len(data))
    if draw.random() < 0.5:
        # At the start of a line there is more to go wrong.
        at = data.rfind(b"\n", 0, at) + 1
    return data[:at] + draw.choice(INSERTED) + data[at:]


def replace(draw: random.Random, data: bytes) -> bytes:
    at = draw.randint(0, len(data))
    new = draw.choice(INSERTED)
    return data[:at] + new + data[at + len(new) :] if len(new) < 100 else insert(draw, data)


DAMAGES = (flip, cut, remove, splice, lines, lines, crlf, mark_first, insert, insert, insert, replace)


def damaged_gzip(seed: int) -> tuple[bytes, bytes]:
    """A text, and its gzip file damaged (or not)."""
    draw = random.Random(f"gzip/{seed}")
    plain = b"".join(text(draw).encode() + b"\n" for _ in range(draw.randint(0, 400)))
    data = gzip.compress(plain, mtime=0)
    if draw.random() < 0.3:
        data += gzip.compress(b"", mtime=0) + b"\0" * draw.randint(0, 20)
    for _ in range(draw.choice((0, 1, 1, 2))):
        data = draw.choice((flip, flip, cut, remove, splice, insert))(draw, data)
    return plain, data
