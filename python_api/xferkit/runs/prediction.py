"""Files of text to files of labels, row by row: any number of rows in constant memory, in their order."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TextIO, cast

from xferkit.data.records import Columns, Format, Mode, ReadReport, read_records
from xferkit.files import sync_folder, temporary_name
from xferkit.runs.pipeline import Pipeline, Prediction

__all__ = ["STDIN", "OutputFormat", "PredictionJob", "open_output", "predict_files"]

OutputFormat = Literal["text", "jsonl"]

#: Stands for the standard input among file names.
STDIN = "-"
_STDIN_PATH = "/dev/stdin"


@dataclass(frozen=True)
class PredictionJob:
    """What is read and how the answers are written.

    Attributes:
        files: names of files; ``-`` is the standard input.
        language: whose texts these are; None: the target's.
        format: of the files; ``"auto"`` goes by the name, and takes the standard input for plain text.
        mode: ``"skip"`` leaves malformed rows out.
        columns: what columns hold.
        encoding: of the files.
        to: ``"text"``: ``label<TAB>probability<TAB>text`` for classes, and CoNLL lines ``word<TAB>tag`` with a
            blank line after each sentence for tags. ``"jsonl"``: an object a line, with the line of the input.
        batch_size: texts at once at most.
    """

    files: tuple[str, ...]
    language: str | None = None
    format: Format = "auto"
    mode: Mode = "strict"
    columns: Columns | None = None
    encoding: str = "utf-8"
    to: OutputFormat = "text"
    batch_size: int = 64


def predict_files(
    model: Pipeline, job: PredictionJob, output: TextIO, *, done: Callable[[int], None] | None = None
) -> list[ReadReport]:
    """Answer all texts of all files, in their order.

    Of plain text that is classified, line i of the output belongs to line i of the input: lines that are blank or
    left out give an empty line.

    Args:
        model: the model.
        job: what is read and how it is written.
        output: where the answers go.
        done: told how many texts were answered since it was told last.

    Returns:
        What became of the rows of each file.

    Raises:
        ValueError: a malformed row in strict mode, or a file that cannot be read.
    """
    reports = []
    model.source_number(job.language)
    for name in job.files:
        path = _STDIN_PATH if name == STDIN else name
        plain = job.format == "text" or (job.format == "auto" and (name == STDIN or _is_text(name)))
        reader = read_records(
            path,
            format="text" if plain else job.format,
            task=model.coder.task,
            mode=job.mode,
            labelled=False,
            columns=job.columns,
            encoding=job.encoding,
        )
        write = _writer(model, job, output, aligned=plain, file=name if len(job.files) > 1 else None)
        for answer in model.predict(reader, language=job.language, batch_size=job.batch_size):
            write(answer)
            if done is not None:
                done(1)
        reports.append(reader.report)
    output.flush()
    return reports


def _is_text(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(".txt")


def _writer(
    model: Pipeline, job: PredictionJob, output: TextIO, *, aligned: bool, file: str | None
) -> Callable[[Prediction], None]:
    tagging, line = model.coder.task == "tagging", 0

    def as_json(answer: Prediction) -> None:
        record = answer.record
        content: dict[str, object] = {} if file is None else {"file": file}
        content["line"] = record.line
        if tagging:
            content |= {"tokens": list(record.words()), "tags": list(answer.labels)}
        else:
            content |= {"text": record.text, "label": answer.labels, "probability": answer.probability}
        output.write(json.dumps(content, ensure_ascii=False) + "\n")

    def as_conll(answer: Prediction) -> None:
        rows = zip(answer.record.words(), answer.labels, strict=True)
        output.write("".join(f"{word}\t{tag}\n" for word, tag in rows) + "\n")

    def as_table(answer: Prediction) -> None:
        nonlocal line
        if aligned:
            output.write("\n" * (answer.record.line - line - 1))
            line = answer.record.line
        text = " ".join(answer.record.text.splitlines())
        output.write(f"{answer.labels}\t{answer.probability:.4f}\t{text}\n")

    if job.to == "jsonl":
        return as_json
    return as_conll if tagging else as_table


@contextlib.contextmanager
def open_output(path: str | None, *, overwrite: bool = False) -> Iterator[TextIO]:
    """Where answers go: the standard output, or a file that appears when it is whole; ``.gz`` is compressed.

    Raises:
        ValueError: the file is there and `overwrite` is False, or it cannot be written.
    """
    if path is None:
        try:
            number = os.dup(sys.stdout.fileno())
        except (OSError, ValueError):  # a stdout that somebody replaced by an object
            yield sys.stdout
            return
        # Not the stream itself: text of any kind comes out as UTF-8, whatever the terminal says.
        sys.stdout.flush()
        with open(number, "w", encoding="utf-8", newline="\n") as stream:
            yield stream
        return
    target = Path(path)
    if target.exists() and not overwrite:
        raise ValueError(f"{target} is there already; expected a free name, or --overwrite")
    temporary = temporary_name(target)
    try:
        raw = open(temporary, "wb")  # noqa: SIM115  (closed below, before the file gets its name)
    except OSError as error:
        raise ValueError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        with raw:
            with _text(raw, path) as stream:
                yield stream
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def _text(raw: IO[bytes], path: str) -> Iterator[TextIO]:
    if not path.lower().endswith(".gz"):
        stream = io.TextIOWrapper(cast(io.BufferedWriter, raw), encoding="utf-8", newline="\n")
        yield stream
        stream.flush()
        stream.detach()
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed:
        stream = io.TextIOWrapper(cast(io.BufferedWriter, packed), encoding="utf-8", newline="\n")
        yield stream
        stream.flush()
        stream.detach()
