"""Names that a person gives against those there are: the nearest ones, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

__all__ = ["matching", "nearest"]


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """``; the nearest are 'a', 'b'`` for the end of a sentence, empty where there is nothing to name."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=count, cutoff=0.4) or names[:count]
    if not near:
        return ""
    verb = "is" if len(near) == 1 else "are"
    return f"; the nearest {verb} {', '.join(map(repr, near))}"


def matching(patterns: Iterable[str], names: Iterable[str]) -> bool:
    """Whether one of `patterns` (``*``, ``?``, ``[...]``, as in a shell) is true of one of `names`."""
    found = list(names)
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in found)
