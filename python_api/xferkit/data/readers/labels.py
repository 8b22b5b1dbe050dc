"""Labels as they stand in files: cleaned, checked against those allowed, each kept in memory once."""

from __future__ import annotations

from collections.abc import Iterable

from xferkit.data.errors import close_name, shown, shown_list
from xferkit.data.readers.job import Flaw

__all__ = ["LabelTable"]

# A file whose labels are not labels at all (an id per row) must not fill the memory.
_MAX_KNOWN = 2**16
_MAX_HINTS = 10


class LabelTable:
    """From the label as written to the label meant.

    Args:
        what: ``"label"`` or ``"tag"``, for the sentences.
        allowed: the labels there may be; None: any.
        missing: what stands for no label, beside nothing.
        no_spaces: refuse labels with white space within, which are several tags or a wrong column.

    Attributes:
        known: labels met before; readers look here first, for speed.
    """

    def __init__(
        self,
        what: str,
        allowed: Iterable[str] | None,
        *,
        missing: frozenset[str] = frozenset(),
        no_spaces: bool = False,
    ) -> None:
        self.known: dict[str, str] = {}
        self._what = what
        self._allowed = None if allowed is None else dict.fromkeys(allowed)
        self._expected = "" if self._allowed is None else f"one of {shown_list(self._allowed)}"
        self._missing = missing
        self._no_spaces = no_spaces
        self._hints = _MAX_HINTS

    def check(self, raw: str) -> str | Flaw:
        """The label without white space around it, or what is wrong with it."""
        label = self.known.get(raw)
        if label is not None:
            return label
        label = raw.strip()
        what = self._what
        if not label or label in self._missing:
            wrong = f"the {what} is {shown(label)}" if label else f"the {what} is empty"
            return Flaw(f"no {what}", wrong, f"a {what}")
        if self._no_spaces and len(label.split()) > 1:
            return Flaw(
                f"{what} with spaces",
                f"the {what} {shown(label)} holds spaces",
                f"one {what} per token (in a table with a list per row, name the columns)",
            )
        if self._allowed is not None and label not in self._allowed:
            near = ""
            if self._hints:
                # Looking for the nearest name takes longer than reading the row.
                self._hints -= 1
                near = close_name(label, self._allowed)
            return Flaw(
                f"unknown {what}",
                f"unknown {what} {shown(label)}{near}",
                self._expected,
            )
        if len(self.known) >= _MAX_KNOWN:
            self.known.clear()
        self.known[raw] = label
        return label
