"""Tables with a row per example: which columns, with or without a header, checked row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from xferkit.data.errors import DataError, close_name, shown, shown_list
from xferkit.data.readers.job import Flaw, ReadJob, Tally
from xferkit.data.readers.labels import LabelTable
from xferkit.data.readers.rows import Rows
from xferkit.data.readers.text import too_many_tokens
from xferkit.data.records import Record

__all__ = [
    "LABEL_NAMES",
    "TAGS_NAMES",
    "TEXT_NAMES",
    "TOKENS_NAMES",
    "Layout",
    "WantedColumn",
    "find_layout",
    "missing_column",
    "read_table",
    "wanted_columns",
]

TEXT_NAMES = ("text", "sentence", "utterance", "tokens")
LABEL_NAMES = ("label", "class", "intent")
TOKENS_NAMES = ("tokens", "words")
TAGS_NAMES = ("tags", "slots", "labels", "ner_tags", "pos_tags", "upos")

NO_TEXT = Flaw("no text", "the text is empty", "a text")
NO_TOKENS = Flaw("no tokens", "there are no tokens", "a sentence of at least one token")


@dataclass(frozen=True)
class WantedColumn:
    """A column that is looked for: as which argument, under which names or at which place."""

    argument: str
    given: str | int | None
    names: tuple[str, ...]
    remedy: str = ""

    @property
    def otherwise(self) -> str:
        """How a person says which column it is."""
        return self.remedy or f"--columns {self.argument}=... (in Python Columns({self.argument}=...))"

    def among(self, names: list[str]) -> str | None:
        """The name under which it is there: the one given, exactly; else the first default, in any case."""
        if isinstance(self.given, str):
            return self.given if self.given in names else None
        lower = {name.lower(): name for name in reversed(names)}
        return next((lower[name] for name in self.names if name in lower), None)


def wanted_columns(job: ReadJob) -> list[WantedColumn]:
    """Text or tokens and, when labels are wanted, label or tags."""
    columns = job.columns
    if job.task == "tagging":
        wanted = [
            WantedColumn("tokens", columns.tokens, TOKENS_NAMES),
            WantedColumn("tags", columns.tags, TAGS_NAMES),
        ]
    else:
        wanted = [
            WantedColumn("text", columns.text, TEXT_NAMES),
            WantedColumn("label", columns.label, LABEL_NAMES),
        ]
    return wanted if job.labelled else wanted[:1]


def missing_column(job: ReadJob, line: int, column: WantedColumn, names: list[str], kind: str) -> DataError:
    """No column (key) of that name."""
    given = column.given if isinstance(column.given, str) else None
    wanted = shown(given) if given else f"for the {column.argument} ({', '.join(column.names)})"
    near = close_name(given or column.names[0], names)
    return DataError.at(
        job.path,
        line,
        f"no {kind} {wanted} among {shown_list(names)}{near}{_other_delimiter(names, job.format)}",
        f"it, or {column.otherwise} with the name of another {kind}",
        reason=f"missing {kind}",
    )


def _other_delimiter(cells: list[str], format: str) -> str:
    """What may be the delimiter of a line that came as a single cell, in brackets."""
    other = next((d for d in ("\t", ";", "|", ",") if len(cells) == 1 and d in cells[0]), None)
    if other is None:
        return ""
    if format != "csv":
        return f" (the line holds {other!r}: is that the delimiter?)"
    if other == "\t":
        return f" (the line holds {other!r}: is that the delimiter, as in a .tsv?)"
    named = f"--columns 'delimiter={other}', in Python Columns(delimiter={other!r})"
    return f" (the line holds {other!r}: if that is the delimiter, name it with {named})"


@dataclass(frozen=True)
class Layout:
    """The columns of a table: places of the wanted ones, the number of all, and the names where there is a header."""

    places: list[int]  # of the wanted columns
    width: int
    names: list[str] | None  # None: no header
    format: str

    def wrong_width(self, cells: list[str]) -> Flaw:
        """What is said of a row with more or fewer cells."""
        found = f"{len(cells)} column{'s' * (len(cells) != 1)}"
        if len(cells) > self.width:
            return Flaw("extra columns", f"more than {self.width} columns", self._expected())
        # Texts hold commas, which say nothing of a table whose columns are separated by tabs.
        hint = _other_delimiter(cells, self.format) if self.format == "csv" else ""
        return Flaw("missing columns", f"{found}{hint}", self._expected())

    def _expected(self) -> str:
        names = f" ({shown_list(self.names)})" if self.names else ""
        return f"{self.width}{names}"


def read_table(rows: Rows, job: ReadJob, tally: Tally) -> Iterator[Record]:
    """Records of a table with a row per text, or per sentence with lists in cells."""
    wanted = wanted_columns(job)
    numbered = iter(rows)
    first = next(numbered, None)
    if first is None:
        return
    layout = find_layout(job, wanted, *first)
    rows.most = layout.width
    parse = _taggings if job.task == "tagging" else _classifications
    yield from parse(numbered if layout.names else chain([first], numbered), layout, job, tally)


def find_layout(job: ReadJob, wanted: list[WantedColumn], line: int, cells: list[str] | Flaw) -> Layout:
    """Where the wanted columns are, from the first row.

    Raises:
        DataError: it does not tell, or is malformed itself.
    """
    if isinstance(cells, Flaw):
        # Without the first row there is no telling what the others hold.
        raise job.error(line, cells)
    names = [cell.strip() for cell in cells]
    header = job.columns.header
    if header is None:
        header = _is_header(job, line, wanted, names)
    return _named(job, line, wanted, names) if header else _numbered(job, line, wanted, len(cells))


def _is_header(job: ReadJob, line: int, wanted: list[WantedColumn], names: list[str]) -> bool:
    if any(isinstance(column.given, str) for column in wanted):
        return True
    found = [column.among(names) for column in wanted]
    if all(found) or not any(found):
        return all(found)
    # A header with an unknown name, or a row whose text or label is called so: not to be guessed.
    missing = wanted[found.index(None)]
    raise missing_column(job, line, missing, names, "column")


def _named(job: ReadJob, line: int, wanted: list[WantedColumn], names: list[str]) -> Layout:
    places = []
    for column in wanted:
        if isinstance(column.given, int):
            places.append(_place(job, line, column, len(names)))
            continue
        name = column.among(names)
        if name is None:
            raise missing_column(job, line, column, names, "column")
        if names.count(name) > 1:
            raise DataError.at(
                job.path,
                line,
                f"the header names the column {shown(name)} twice",
                f"one such column, or {column.otherwise} with a number",
                reason="column named twice",
            )
        places.append(names.index(name))
    return Layout(places, len(names), names, job.format)


def _numbered(job: ReadJob, line: int, wanted: list[WantedColumn], width: int) -> Layout:
    if any(column.given is not None for column in wanted):
        places = [_place(job, line, column, width, i) for i, column in enumerate(wanted)]
        return Layout(places, width, None, job.format)
    # Nothing says what a third column would be.
    return Layout(list(range(len(wanted))), 2 if job.labelled else width, None, job.format)


def _place(job: ReadJob, line: int, column: WantedColumn, width: int, default: int = 0) -> int:
    number = default if column.given is None else column.given
    assert isinstance(number, int)
    if not -width <= number < width:
        raise DataError.at(
            job.path,
            line,
            f"{width} column{'s' * (width != 1)}, so none with the number {number} for the {column.argument}",
            f"a number from {-width} to {width - 1}",
            reason="missing column",
        )
    return number % width


def _classifications(
    rows: Iterator[tuple[int, list[str] | Flaw]], layout: Layout, job: ReadJob, tally: Tally
) -> Iterator[Record]:
    width, text_at = layout.width, layout.places[0]
    label_at = layout.places[1] if job.labelled else -1
    labels = LabelTable("label", job.allowed_labels)
    known = labels.known
    label: str | Flaw | None = None
    for number, cells in rows:
        tally.rows_in += 1
        if isinstance(cells, Flaw):
            tally.reject(number, cells)
            continue
        if len(cells) != width:
            tally.reject(number, layout.wrong_width(cells))
            continue
        text = cells[text_at]
        if not text or text.isspace():
            tally.reject(number, NO_TEXT)
            continue
        if label_at >= 0:
            label = known.get(cells[label_at])
            if label is None:
                label = labels.check(cells[label_at])
                if isinstance(label, Flaw):
                    tally.reject(number, label)
                    continue
        tally.rows_out += 1
        yield Record((), label, number, text)


def _taggings(
    rows: Iterator[tuple[int, list[str] | Flaw]], layout: Layout, job: ReadJob, tally: Tally
) -> Iterator[Record]:
    width, tokens_at = layout.width, layout.places[0]
    tagger = TagChecker(job)
    for number, cells in rows:
        tally.rows_in += 1
        if isinstance(cells, Flaw):
            tally.reject(number, cells)
            continue
        if len(cells) != width:
            tally.reject(number, layout.wrong_width(cells))
            continue
        # At spaces alone: a no-break space may stand within a token.
        tokens = cells[tokens_at].split(" ")
        tags = cells[layout.places[1]].split(" ") if job.labelled else None
        if "" in tokens or (tags and "" in tags):
            tokens, tags = _without_gaps(tokens, tags)
        record = tagger.record(number, tokens, tags)
        if isinstance(record, Flaw):
            tally.reject(number, record)
            continue
        tally.rows_out += 1
        yield record


def _without_gaps(tokens: list[str], tags: list[str] | None) -> tuple[list[str], list[str] | None]:
    """Lists without the empty items that runs of spaces make."""
    if tags is not None and len(tags) == len(tokens):
        # Some corpora count what stands between two spaces as a token, and tag it.
        pairs = list(zip(tokens, tags, strict=True))
        if all(tag in ("", "O") for token, tag in pairs if not token):
            kept = [(token, tag) for token, tag in pairs if token]
            return [token for token, _ in kept], [tag for _, tag in kept]
    return list(filter(None, tokens)), None if tags is None else list(filter(None, tags))


class TagChecker:
    """Sentences that come as two lists: as many tags as tokens, each tag a good one."""

    def __init__(self, job: ReadJob) -> None:
        self._max_tokens = job.max_tokens
        self._labels = LabelTable("tag", job.allowed_labels, no_spaces=True)

    def record(self, line: int, tokens: list[str], tags: list[str] | None) -> Record | Flaw:
        """The record, or what is wrong."""
        if not tokens:
            return NO_TOKENS
        if len(tokens) > self._max_tokens:
            return too_many_tokens(self._max_tokens)
        if tags is None:
            return Record(tuple(tokens), None, line)
        if len(tags) != len(tokens):
            wrong = f"{len(tokens)} tokens but {len(tags)} tags"
            return Flaw("tags differ in number", wrong, "a tag for each token")
        known = self._labels.known
        checked = []
        for tag in tags:
            good = known.get(tag)
            if good is None:
                found = self._labels.check(tag)
                if isinstance(found, Flaw):
                    return found
                good = found
            checked.append(good)
        return Record(tuple(tokens), tuple(checked), line)
