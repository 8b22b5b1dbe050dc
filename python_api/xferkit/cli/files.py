"""Files and columns as people name them on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields

from xferkit.data.corpus import CorpusKey
from xferkit.data.records import Columns
from xferkit.runs.schema import Option, checked_value, nearest, options_of

__all__ = ["columns_of", "named_file"]


def named_file(word: str) -> tuple[str | None, str]:
    """Language and file of ``es=es.tsv``; no language where the word is a file as it is.

    Raises:
        ValueError: there is no such file.
    """
    if os.path.exists(word):
        return None, word
    name, equals, path = word.partition("=")
    if not equals:
        raise ValueError(f"{word} does not exist; expected a file, or LANG=FILE")
    key = str(CorpusKey.parse(name))
    if not os.path.exists(path):
        raise ValueError(f"{path} (for {key!r}) does not exist; expected a file")
    return key, path


def columns_of(words: Sequence[str]) -> Columns | None:
    """Columns from words such as ``tokens=words`` or ``label=-1``; None where there are none.

    Raises:
        ValueError: no such name (with the nearest one), or a value of another kind.
    """
    if not words:
        return None
    known = options_of(Columns)
    values: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise ValueError(f"--columns: {word!r} is not NAME=COLUMN; expected for example label=intent")
        if name not in known:
            listed = ", ".join(f.name for f in fields(Columns))
            raise ValueError(f"--columns: unknown name {name!r}{nearest(name, known)}; names are {listed}")
        values[name] = checked_value(known[name], _plain(known[name], value), "--columns")
    return Columns(**values)  # type: ignore[arg-type]


def _plain(option: Option, value: str) -> object:
    if option.key == "header":
        return {"true": True, "false": False}.get(value.lower(), value)
    if option.key in ("text", "label", "tokens", "tags"):
        try:
            return int(value)
        except ValueError:
            return value
    return value
