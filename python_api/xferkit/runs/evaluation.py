"""Scores of a saved model on labelled files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from xferkit.data.ragged import RaggedLabels
from xferkit.data.records import Columns, Format, Mode, OnProgress, ReadReport, RecordReader, read_records
from xferkit.data.vocabulary import LabelSet
from xferkit.runs.pipeline import Pipeline
from xferkit.runs.predicting import predict_numbers
from xferkit.runs.scoring import Scheme, Scores, score_numbers

__all__ = ["FileScores", "evaluate_model"]

Watch = Callable[[str], OnProgress | None]


@dataclass(frozen=True)
class FileScores:
    """Scores on one file.

    Attributes:
        path: the file.
        language: whose texts it was taken to hold; None: those of the target.
        scores: the scores.
        unknown_labels: labels of the file that the model does not have, which count as missed.
        report: what became of its rows.
    """

    path: str
    language: str | None
    scores: Scores
    unknown_labels: tuple[str, ...]
    report: ReadReport


def evaluate_model(
    model: Pipeline,
    path: str,
    *,
    language: str | None = None,
    format: Format = "auto",
    mode: Mode = "strict",
    columns: Columns | None = None,
    encoding: str = "utf-8",
    count_unknown: bool = False,
    scheme: Scheme = "conlleval",
    batch_size: int = 64,
    watch: Watch | None = None,
) -> FileScores:
    """Score `model` on a labelled file.

    Args:
        model: the model.
        path: the file.
        language: whose texts it holds; None: the target's.
        format: of the file.
        mode: ``"skip"`` leaves malformed rows out.
        columns: what its columns hold.
        encoding: of the file.
        count_unknown: labels that the model does not have count as missed; otherwise they are errors.
        scheme: which spans BIO tags stand for that break the scheme.
        batch_size: texts at once at most.
        watch: gives the reading something to tell its progress to.

    Raises:
        ValueError: the file is not as expected (file and line), or holds no labelled row.
    """
    coder = model.coder
    source = model.source_number(language)

    def reader(allowed: Iterable[str] | None) -> RecordReader:
        return read_records(
            path,
            format=format,
            task=coder.task,
            mode=mode,
            columns=columns,
            allowed_labels=allowed,
            encoding=encoding,
            on_progress=watch(path) if watch is not None else None,
        )

    more: dict[str, None] = {}
    if count_unknown:
        for record in reader(None):
            tags = (record.labels,) if isinstance(record.labels, str) else record.labels or ()
            more |= dict.fromkeys(tag for tag in tags if tag not in coder.labels)
    names = LabelSet([*coder.labels.names, *more])
    records = reader(None if count_unknown else names.names)
    lexicon = coder.lexicon(language or model.blueprint.target or "")
    texts, labels = coder.encode(records, lexicon, labels=names, path=path)
    if labels is None or not len(texts):
        raise ValueError(f"{path}: holds no labelled rows; expected some to score on")
    tagging = coder.task == "tagging"
    found = predict_numbers(model.method, texts, tagging=tagging, source=source, batch_size=batch_size)
    gold = labels.flat if isinstance(labels, RaggedLabels) else labels
    scores = score_numbers(
        gold, found.flat, found.lengths, names.names, tagging=tagging, scheme=scheme, known=len(coder.labels)
    )
    return FileScores(path, language, scores, tuple(more), records.report)
