"""Where token and tag stand in files with a token per line, and what lines that hold no token are."""

from __future__ import annotations

from typing import Literal

from xferkit.data.errors import DataError, close_name, shown, shown_list
from xferkit.data.readers.blocks import Block
from xferkit.data.readers.job import Flaw, ReadJob
from xferkit.data.readers.labels import LabelTable
from xferkit.data.readers.table import LABEL_NAMES, TAGS_NAMES

__all__ = ["DOCUMENT", "CoNLLLayout", "CoNLLULayout", "Kind", "Layout", "separated_by_tabs"]

DOCUMENT = "-DOCSTART-"
_CONLLU_NAMES = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_CONLLU_PLUS = "# global.columns"
_HEADER_TOKENS = ("token", "tokens", "word", "words", "form")
_HEADER_TAGS = ("tag", "pos", "ner", "slot", *TAGS_NAMES, *LABEL_NAMES)
_MOST_COLUMNS = 4096

_NO_TOKEN = Flaw("no token", "the token is empty", "a token")

#: What a line is: it holds a token, nothing of the sentence, or the sentence's end.
Kind = Literal["token", "nothing", "end"]


def separated_by_tabs(block: Block) -> bool | None:
    """Whether tabs separate the columns, by the first line that shows it; None when the block does not tell."""
    for line in block.lines:
        if "\t" in line:
            return True
        if line and not line.isspace() and not line.startswith(("#", DOCUMENT)):
            return False
    return None


class Layout:
    """Columns of a file.

    Attributes:
        tabs: they are separated by tabs, else by runs of spaces and tabs.
        width: their number; 0 as long as no line with a token was met.
        token_at, tag_at: where token and tag stand, when ``width`` is known.
        ids: the first one numbers the tokens of a sentence.
        comment: lines that begin with this hold no token; "" for none.
        labels: the tags there may be.
    """

    def __init__(self, job: ReadJob, tabs: bool, comment: str, labels: LabelTable) -> None:
        self.job, self.tabs, self.comment, self.labels = job, tabs, comment, labels
        self.width, self.token_at, self.tag_at = 0, 0, -1
        self.ids = False

    def cut(self, line: str) -> list[str]:
        """The columns of a line; of one with too many tabs, one more than there should be."""
        if self.tabs:
            return line.split("\t", self.width or _MOST_COLUMNS)
        return [cell for cell in line.replace("\t", " ").split(" ") if cell]

    def odd_line(self, number: int, line: str, cells: list[str], begun: bool) -> Kind | Flaw:
        """What a line is that has not ``width`` columns, or no token, or begins like a comment or a document.

        ``begun``: it stands within a sentence.
        """
        if self.comment and line.startswith(self.comment):
            self._read_comment(number, line, begun)
            return "nothing"
        if not cells or line.isspace():
            return "end"
        if len(cells) == self.width:
            return "token" if cells[self.token_at] else _NO_TOKEN
        return self._other_width(number, line, cells)

    def _read_comment(self, number: int, line: str, begun: bool) -> None:
        pass

    def _other_width(self, number: int, line: str, cells: list[str]) -> Kind | Flaw:
        raise NotImplementedError

    def _wrong_width(self, cells: list[str], expected: str) -> Flaw:
        if self.width and len(cells) > self.width:
            return Flaw("extra columns", f"more than {self.width} columns", expected)
        return Flaw("missing columns", f"{len(cells)} column{'s' * (len(cells) != 1)}", expected)


class CoNLLLayout(Layout):
    """Any number of columns, the same on each line as on the first; perhaps a header with their names."""

    def __init__(self, job: ReadJob, tabs: bool, hash_comments: bool) -> None:
        labels = LabelTable("tag", job.allowed_labels, no_spaces=True)
        super().__init__(job, tabs, job.columns.comment or "", labels)
        self._hash_comments = hash_comments and not job.columns.comment
        self._tokens = 0 if job.columns.tokens is None else job.columns.tokens
        self._tags = -1 if job.columns.tags is None else job.columns.tags
        named = isinstance(self._tokens, str) or (job.labelled and isinstance(self._tags, str))
        self._header = True if named else job.columns.header
        self._first_line = 0

    def odd_line(self, number: int, line: str, cells: list[str], begun: bool) -> Kind | Flaw:
        """See :class:`Layout`; ``-DOCSTART-`` ends a sentence."""
        if cells and cells[0].split(" ", 1)[0] == DOCUMENT:
            return "end"
        return super().odd_line(number, line, cells, begun)

    def _other_width(self, number: int, line: str, cells: list[str]) -> Kind | Flaw:
        if self._hash_comments and line.startswith("#") and "\t" not in line:
            return "nothing"
        if self.width:
            hint = " (if this is a comment, set Columns(comment='#'))" if line.startswith("#") else ""
            return self._wrong_width(cells, f"{self.width} as in line {self._first_line}{hint}")
        names = [cell.strip() for cell in cells]
        if self._header or (self._header is None and self._looks_like_header(names)):
            self._header = False
            self._tokens = self._number_of(number, "tokens", self._tokens, names)
            if self.job.labelled:
                self._tags = self._number_of(number, "tags", self._tags, names)
            return "nothing"
        return self._take_width(number, cells)

    def _looks_like_header(self, names: list[str]) -> bool:
        # No sentence begins with the token "token" tagged "tag".
        for place, known in ((self._tokens, _HEADER_TOKENS), (self._tags, _HEADER_TAGS)):
            if not isinstance(place, int) or not -len(names) <= place < len(names):
                return False
            if names[place].lower() not in known:
                return False
        return len(names) > 1

    def _number_of(self, line: int, argument: str, place: str | int, names: list[str]) -> int:
        if isinstance(place, int):
            return place
        if names.count(place) != 1:
            what = "two columns" if place in names else "no column"
            raise DataError.at(
                self.job.path,
                line,
                f"{what} {shown(place)} among {shown_list(names)}{close_name(place, names)}",
                f"one, or Columns({argument}=...) with another name or a number",
                reason="missing column",
            )
        return names.index(place)

    def _take_width(self, number: int, cells: list[str]) -> Kind | Flaw:
        assert isinstance(self._tokens, int)
        places, width = [self._tokens], len(cells)
        if self.job.labelled:
            assert isinstance(self._tags, int)
            places.append(self._tags)
        # Columns counted from the two ends must not meet.
        least = max(max(p + 1, 0) for p in places) + max(max(-p, 0) for p in places)
        if width < least:
            tab = " between tabs" if self.tabs else ""
            return self._wrong_width(cells, f"at least {least}{tab}")
        self.token_at, self.tag_at, self.width = places[0] % width, places[-1] % width, width
        self._first_line = number
        return "token" if cells[self.token_at] else _NO_TOKEN


class CoNLLULayout(Layout):
    """The ten columns of CoNLL-U, or those that the first line of a CoNLL-U Plus file names."""

    def __init__(self, job: ReadJob) -> None:
        labels = LabelTable("tag", job.allowed_labels, no_spaces=True, missing=frozenset("_"))
        super().__init__(job, True, "#", labels)
        self._settle(None, _CONLLU_NAMES)

    def _settle(self, line: int | None, names: tuple[str, ...]) -> None:
        self._names = names
        self.width = len(names)
        self.ids = names[0] == "ID"
        columns = self.job.columns
        self.token_at = self._number_of(line, "tokens", "FORM" if columns.tokens is None else columns.tokens)
        if self.job.labelled:
            self.tag_at = self._number_of(line, "tags", "UPOS" if columns.tags is None else columns.tags)

    def _number_of(self, line: int | None, argument: str, place: str | int) -> int:
        names = self._names
        if isinstance(place, int) and -len(names) <= place < len(names):
            return place % len(names)
        if isinstance(place, str) and place in names:
            return names.index(place)
        near = close_name(place, names) if isinstance(place, str) else ""
        raise DataError.at(
            self.job.path,
            line,
            f"CoNLL-U has no column {place!r} for the {argument}",
            f"one of {shown_list(names)}{near}",
            reason="missing column",
        )

    def _read_comment(self, number: int, line: str, begun: bool) -> None:
        # "# global.columns = ID FORM UPOS" changes the columns.
        if not begun and line.startswith(_CONLLU_PLUS) and "=" in line:
            self._settle(number, tuple(line.split("=", 1)[1].split()) or _CONLLU_NAMES)

    def _other_width(self, number: int, line: str, cells: list[str]) -> Kind | Flaw:
        return self._wrong_width(cells, f"{self.width} between tabs ({shown_list(self._names)})")
