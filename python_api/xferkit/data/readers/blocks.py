"""Files as blocks of decoded lines: bounded memory, one pass, every odd byte noticed."""

from __future__ import annotations

import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from xferkit.data.errors import DataError, close_name, shown
from xferkit.data.readers.gunzip import decompress, is_gzip_name
from xferkit.data.readers.job import Flaw, ReadJob
from xferkit.data.records import OnProgress

__all__ = ["Block", "Line", "numbered_lines", "read_blocks"]

#: Bytes read and decoded together: enough to be fast, little to hold.
BLOCK_BYTES = 2**18

# Beginnings of files that are no text, with the sentence's words for them.
_NO_TEXT = (
    (b"\xff\xfe", "text in UTF-16", "UTF-8 (`iconv -f utf-16 -t utf-8` converts it)"),
    (b"\xfe\xff", "text in UTF-16", "UTF-8 (`iconv -f utf-16 -t utf-8` converts it)"),
    (b"\x1f\x8b", "gzip data", "text, or a name that ends in .gz"),
    (b"PK\x03\x04", "a zip archive (or .xlsx, .docx)", "text"),
    (b"BZh9", "bzip2 data", "text, plain or in gzip"),
    (b"\xfd7zXZ", "xz data", "text, plain or in gzip"),
    (b"\x28\xb5\x2f\xfd", "zstandard data", "text, plain or in gzip"),
    (b"PAR1", "a Parquet file", "text"),
    (b"ARROW1", "an Arrow file", "text, or the folder that a `datasets` data set was saved to"),
)
_BOM = "\ufeff"

_NUL = Flaw("NUL character", "a NUL character in the line", "text (is the file UTF-16, or cut by a crash?)")
_CR = Flaw("stray carriage return", "a carriage return within the line", "lines that end in LF or CRLF")
_MARK = Flaw(
    "stray byte order mark",
    "a byte order mark (U+FEFF) at the start of a line that is not the first",
    "it at the start of the file alone (were files joined?)",
)


class Block(NamedTuple):
    """Consecutive lines: number of the first, the lines without their ends, and what is wrong with which.

    A line with a flaw is the empty string, so that nobody uses it unawares.
    """

    start: int
    lines: list[str]
    flaws: dict[int, Flaw]


#: Number, text, and what is wrong with a line.
Line = tuple[int, str, Flaw | None]


def numbered_lines(blocks: Iterator[Block]) -> Iterator[Line]:
    """The lines one by one."""
    for block in blocks:
        flaws = block.flaws
        if flaws:
            for number, line in enumerate(block.lines, block.start):
                yield number, line, flaws.get(number)
        else:
            for number, line in enumerate(block.lines, block.start):
                yield number, line, None


def read_blocks(job: ReadJob, on_progress: OnProgress | None = None) -> Iterator[Block]:
    """All lines of the job's file, in order.

    Time is linear in the file's size, whatever its lines; no more than ``max_line_bytes`` and a block or two
    are held.

    Raises:
        DataError: the file cannot be opened or read on, or is no text.
    """
    cutter = _LineCutter(job)
    chunks = _read_chunks(job, on_progress, lambda: cutter.number)
    for chunk in chunks:
        if cutter.number == 1 and not cutter.begun:
            _refuse_other_kinds(job, chunk)
        block = cutter.cut(chunk)
        if block is not None:
            yield block
    block = cutter.rest()
    if block is not None:
        yield block


def _refuse_other_kinds(job: ReadJob, chunk: bytes) -> None:
    for magic, what, expected in _NO_TEXT:
        if chunk.startswith(magic):
            raise DataError.at(job.path, 1, f"the file holds {what}", expected, reason="no text")
    if chunk.startswith(_BOM.encode()) and job.encoding != "utf-8":
        raise DataError.at(
            job.path,
            1,
            f"a UTF-8 byte order mark in a file read as {job.encoding}",
            "--encoding utf-8 (in Python encoding='utf-8')",
        )


class _LineCutter:
    """Cuts chunks of bytes into lines; the unfinished last line of a chunk waits for the next."""

    def __init__(self, job: ReadJob) -> None:
        self.number = 1  # of the next line to be handed out
        self.begun = False
        self._job = job
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._too_long = False  # the waiting line is, and its bytes are gone

    def cut(self, chunk: bytes) -> Block | None:
        """The lines that this chunk completes."""
        self.begun = True
        end = chunk.rfind(b"\n")
        if end < 0:
            self._wait(chunk)
            return None
        first = chunk.find(b"\n")
        lead: Flaw | None = None
        if self._too_long:
            lead = self._overlong()
            body = chunk[first + 1 : end] if first < end else None
        else:
            self._waiting.append(chunk[:end])
            body = b"".join(self._waiting)
        self._waiting, self._waiting_bytes, self._too_long = [], 0, False
        self._wait(chunk[end + 1 :])
        return self._block(lead, body)

    def rest(self) -> Block | None:
        """The last line, where the file does not end in a line feed."""
        if self._too_long:
            return self._block(self._overlong(), None)
        if not self._waiting_bytes:
            return None
        return self._block(None, b"".join(self._waiting))

    def _wait(self, piece: bytes) -> None:
        if self._too_long or not piece:
            return
        self._waiting.append(piece)
        self._waiting_bytes += len(piece)
        # One byte more for the carriage return of CRLF, which is no part of the line.
        if self._waiting_bytes > self._job.max_line_bytes + 1:
            self._waiting, self._too_long = [], True

    def _block(self, lead: Flaw | None, body: bytes | None) -> Block:
        start = self.number
        lines: list[str] = []
        flaws: dict[int, Flaw] = {}
        if lead is not None:
            lines.append("")
            flaws[start] = lead
        if body is not None:
            at = start + len(lines)
            text = self._decode_fast(body, first=at == 1)
            if text is None:
                lines.extend(self._decode_slowly(body, at, flaws))
            else:
                lines.extend(text.split("\n"))
        self.number = start + len(lines)
        return Block(start, lines, flaws)

    def _decode_fast(self, body: bytes, first: bool) -> str | None:
        """The whole block as text, or None when any of its lines may have a flaw."""
        if len(body) > self._job.max_line_bytes:
            return None
        try:
            text = body.decode(self._job.encoding)
        except UnicodeDecodeError:
            return None
        if first and text.startswith(_BOM):
            text = text[1:]
        if "\r" in text:
            text = text.replace("\r\n", "\n").removesuffix("\r")
            if "\r" in text:
                return None
        return None if "\0" in text or text.startswith(_BOM) or "\n" + _BOM in text else text

    def _decode_slowly(self, body: bytes, number: int, flaws: dict[int, Flaw]) -> Iterator[str]:
        for at, raw in enumerate(body.split(b"\n"), number):
            line = self._decode_line(raw.removesuffix(b"\r"), first=at == 1)
            if isinstance(line, Flaw):
                flaws[at] = line
                line = ""
            yield line

    def _decode_line(self, raw: bytes, first: bool) -> str | Flaw:
        if len(raw) > self._job.max_line_bytes:
            return self._overlong()
        encoding = self._job.encoding
        try:
            line = raw.decode(encoding)
        except UnicodeDecodeError as error:
            name = encoding.upper()
            other = "latin-1" if encoding == "utf-8" else "utf-8"
            return Flaw(
                f"not {name}",
                f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line is not {name}",
                f"{name} text (or the encoding that the file has, such as --encoding {other}, in Python "
                f"encoding={other!r})",
            )
        if first:
            line = line.removeprefix(_BOM)
        if "\0" in line:
            return _NUL
        if "\r" in line:
            return _CR
        return _MARK if line.startswith(_BOM) else line

    def _overlong(self) -> Flaw:
        limit = self._job.max_line_bytes
        return Flaw(
            "line too long",
            f"the line has more than {limit:,} bytes",
            "shorter lines (the argument max_line_bytes raises the limit)",
        )


def _read_chunks(job: ReadJob, on_progress: OnProgress | None, line: Callable[[], int]) -> Iterator[bytes]:
    """The file's bytes, decompressed; errors of the system become sentences that name the line reached."""
    try:
        file = open(job.path, "rb", buffering=0)  # noqa: SIM115 -- closed below; opening has its own sentences
    except OSError as error:
        raise DataError.at(
            job.path, None, *_why_not_opened(job.path, error), reason="cannot be opened"
        ) from None
    with file:
        raw = _raw_chunks(file, job, on_progress, line)
        yield from decompress(raw, job.path, BLOCK_BYTES, line) if is_gzip_name(job.path) else raw


def _raw_chunks(
    file: io.RawIOBase, job: ReadJob, on_progress: OnProgress | None, line: Callable[[], int]
) -> Iterator[bytes]:
    callbacks = [call for call in (job.on_progress, on_progress) if call is not None]
    status = os.fstat(file.fileno())
    total = status.st_size if stat.S_ISREG(status.st_mode) else None
    done = 0
    while True:
        try:
            chunk = file.read(BLOCK_BYTES)
        except OSError as error:
            wrong = f"the file cannot be read on ({error.strerror})"
            raise DataError.at(
                job.path, line(), wrong, "a file on a sound disk", reason="cannot be read"
            ) from None
        if not chunk:
            return
        done += len(chunk)
        # Told before the chunk is worked on, so that a consumer that stops early has seen it.
        for call in callbacks:
            call(done, total)
        yield chunk


def _why_not_opened(path: str, error: OSError) -> tuple[str, str]:
    if isinstance(error, IsADirectoryError):
        return "is a folder", "a file"
    if isinstance(error, FileNotFoundError):
        folder, name = os.path.split(path)
        try:
            with os.scandir(folder or ".") as entries:
                # A folder may hold millions of names, and comparing them takes time.
                names = [entry.name for entry in itertools.islice(entries, 500)]
        except OSError:
            return f"no such file, nor a folder {shown(folder)} that can be listed", "a file that exists"
        return "no such file", "a file that exists" + close_name(name, names)
    return f"the file cannot be opened ({error.strerror})", "a file that you may read"
