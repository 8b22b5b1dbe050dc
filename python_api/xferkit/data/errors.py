"""What a person reads when a file is not as expected: one sentence with file and line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from itertools import islice

__all__ = ["DataError", "close_name", "printable", "shown", "shown_list"]

_SHOWN_CHARACTERS = 60
_SHOWN_NAMES = 12
_COMPARED_NAMES = 500


class DataError(ValueError):
    """A file, or an argument about files, is wrong; the message is one sentence.

    Attributes:
        path: the file, or None.
        line: its line, counted from 1, or None when the whole file is meant.
        reason: a few words that are the same for every fault of this kind, or "".
    """

    def __init__(
        self, message: str, *, path: str | None = None, line: int | None = None, reason: str = ""
    ) -> None:
        super().__init__(message)
        self.path, self.line, self.reason = path, line, reason

    @classmethod
    def at(
        cls, path: str | os.PathLike[str], line: int | None, wrong: str, expected: str, *, reason: str = ""
    ) -> DataError:
        """The sentence ``path:line: wrong; expected expected``, without ``:line`` for the file as a whole."""
        place = printable(path) if line is None else f"{printable(path)}:{line}"
        message = f"{place}: {wrong}; expected {expected}"
        return cls(message, path=os.fspath(path), line=line, reason=reason)


def printable(path: str | os.PathLike[str]) -> str:
    """A path that prints on one line, whatever its name holds."""
    name = os.fspath(path)
    return name if name.isprintable() else repr(name)


def shown(text: str) -> str:
    """A piece of a file as it stands in a sentence: quoted, on one line, cut when long."""
    # repr escapes whatever does not print: line ends, NUL, lone surrogates.
    return repr(text) if len(text) <= _SHOWN_CHARACTERS else repr(text[:_SHOWN_CHARACTERS]) + "…"


def shown_list(names: Iterable[str]) -> str:
    """Names with commas; the first dozen and their number when there are more."""
    listed = list(names)
    first = listed[:_SHOWN_NAMES]
    text = ", ".join(n if n.isprintable() and 0 < len(n) <= _SHOWN_CHARACTERS else shown(n) for n in first)
    return f"{text}, … ({len(listed)} in all)" if len(listed) > _SHOWN_NAMES else text


def close_name(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'label'?)`` for the known name nearest to `name`, or "" when none is near."""
    # The comparison takes quadratic time, and the names may come from a broken file.
    by_lower = {k.lower(): k for k in islice(known, _COMPARED_NAMES) if len(k) <= _SHOWN_CHARACTERS}
    near = difflib.get_close_matches(name[:_SHOWN_CHARACTERS].lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
