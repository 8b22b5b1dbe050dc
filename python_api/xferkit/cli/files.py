"""Files and columns as people name them on the command line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from xferkit.data.corpus import CorpusKey
from xferkit.data.records import Columns
from xferkit.runs.schema import Option, checked_value, nearest, options_of

__all__ = ["TEXT_COLUMNS", "columns_of", "config_of", "named_file"]

#: What the columns of labelled texts are told by; those of tagged sentences have more.
TEXT_COLUMNS = ("text", "label", "header", "delimiter")
_ROWS = (".tsv", ".csv", ".jsonl", ".txt")


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


def config_of(word: str) -> str:
    """The configuration that was named, where it can be one.

    Raises:
        ValueError: it is a folder, or called like a file of texts, which ``--data`` is for.
    """
    if os.path.isdir(word):
        raise ValueError(
            f"{word} is a folder; expected a YAML file (did you mean --data {shlex.quote(word)}?)"
        )
    if word.lower().removesuffix(".gz").endswith(_ROWS):
        folder = shlex.quote(os.path.dirname(word) or ".")
        raise ValueError(
            f"{word} is called like a file of texts; expected a YAML file, or --data with the folder of such files "
            f"(did you mean --data {folder}?)"
        )
    return word


def columns_of(words: Sequence[str], names: Sequence[str] | None = None) -> Columns | None:
    """Columns from words such as ``tokens=words`` or ``label=-1``; None where there are none.

    Args:
        words: each ``NAME=COLUMN``.
        names: those that there may be; None: all of :class:`~xferkit.data.records.Columns`.

    Raises:
        ValueError: no such name (with the nearest one), or a value of another kind.
    """
    if not words:
        return None
    known = {name: option for name, option in options_of(Columns).items() if names is None or name in names}
    values: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise ValueError(f"--columns: {word!r} is not NAME=COLUMN; expected for example label=intent")
        if name not in known:
            raise ValueError(
                f"--columns: unknown name {name!r}{nearest(name, known)}; names are {', '.join(known)}"
            )
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
