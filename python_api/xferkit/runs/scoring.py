"""How good predicted labels are: accuracy, precision, recall and F1 of each label, and F1 over BIO spans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from xferkit.metrics.spans import SpanScheme, TypeScores, span_f1

__all__ = ["LabelScore", "Scheme", "Scores", "odd_tags", "score_numbers"]

Scheme = SpanScheme


@dataclass(frozen=True)
class LabelScore:
    """Scores of one label or span type, in [0, 1], and how often it is the right one."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """Scores on one labelled set.

    Attributes:
        name: what `score` is: ``"accuracy"`` or ``"span F1 (conlleval)"``.
        score: what models are chosen and compared by, in [0, 1].
        accuracy: share of texts (of words, when tagging) whose label is right.
        macro_f1: mean of the labels' F1, over labels that are right or predicted somewhere.
        majority: accuracy of always answering the most frequent right label.
        texts: number of texts.
        tokens: number of words; None for classification.
        labels: of each label that is right or predicted somewhere.
        spans: by type of span, for BIO tags; None elsewhere.
        all_spans: over the spans of all types together (micro average); None elsewhere.
    """

    name: str
    score: float
    accuracy: float
    macro_f1: float
    majority: float
    texts: int
    tokens: int | None
    labels: dict[str, LabelScore]
    spans: dict[str, LabelScore] | None = None
    all_spans: LabelScore | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""

        def rows(scores: dict[str, LabelScore] | None) -> dict[str, Any] | None:
            return None if scores is None else {name: vars(score) for name, score in scores.items()}

        total = None if self.all_spans is None else vars(self.all_spans)
        return {**vars(self), "labels": rows(self.labels), "spans": rows(self.spans), "all_spans": total}


def odd_tags(names: Iterable[str]) -> tuple[str, ...] | None:
    """None where tags mark no spans; else the tags that are none of ``O``, ``B-x`` and ``I-x``, often none at all.

    Tags mark spans when ``O`` and some ``B-x`` are among them and odd ones are few: at most one for four others.
    Spans are scored as if these were ``O``.
    """
    found = set(names)
    marked = {name for name in found if _is_marked(name)}
    odd = found - marked - {"O"}
    begins = any(name.startswith("B-") for name in marked)
    return tuple(sorted(odd)) if "O" in found and begins and 4 * len(odd) <= len(marked) else None


def _is_marked(name: str) -> bool:
    return name[:2] in ("B-", "I-") and len(name) > 2


def score_numbers(
    gold: Tensor,
    predicted: Tensor,
    lengths: Tensor,
    names: Sequence[str],
    *,
    tagging: bool,
    scheme: Scheme,
    known: int | None = None,
) -> Scores:
    """Compare labels given as numbers of `names`.

    Args:
        gold: ``int[total]``, the right labels of all texts one after the other.
        predicted: ``int[total]``, the answers.
        lengths: ``int64[n]``, labels of each text.
        names: names of the labels by number.
        tagging: a label for each word.
        scheme: which spans tags stand for that break the BIO scheme.
        known: so many of the names, the first ones, are the model's; they alone decide whether spans are scored.
            None: all.

    Raises:
        ValueError: no text, or different numbers of labels.
    """
    if not len(lengths) or not gold.shape == predicted.shape == (int(lengths.sum()),):
        raise ValueError(
            f"scores need as many answers as labels, at least one, got {len(predicted)} for {len(gold)} labels of "
            f"{len(lengths)} texts"
        )
    y, p = gold.long().numpy(), predicted.long().numpy()
    table = np.bincount(y * len(names) + p, minlength=len(names) ** 2).reshape(len(names), len(names))
    right, support, answered = table.diagonal(), table.sum(1), table.sum(0)
    labels = {
        names[i]: _scores(int(right[i]), int(answered[i]), int(support[i]))
        for i in range(len(names))
        if support[i] or answered[i]
    }
    accuracy = float(right.sum() / len(y))
    name, score = "accuracy", accuracy
    spans: dict[str, LabelScore] | None = None
    all_spans: LabelScore | None = None
    if tagging and odd_tags(names[:known]) is not None:
        tags = [name if _is_marked(name) else "O" for name in names]
        found = span_f1(_named(gold, lengths, tags), _named(predicted, lengths, tags), scheme)
        spans = {kind: _span_score(scores) for kind, scores in found.per_type.items()}
        all_spans, name, score = _span_score(found), f"span F1 ({scheme})", found.f1
    return Scores(
        name=name,
        score=score,
        accuracy=accuracy,
        macro_f1=sum(label.f1 for label in labels.values()) / len(labels),
        majority=float(support.max() / len(y)),
        texts=len(lengths),
        tokens=len(y) if tagging else None,
        labels=labels,
        spans=spans,
        all_spans=all_spans,
    )


def _named(numbers: Tensor, lengths: Tensor, names: Sequence[str]) -> list[list[str]]:
    return [[names[i] for i in row.tolist()] for row in numbers.split(lengths.tolist())]


def _scores(right: int, answered: int, support: int) -> LabelScore:
    precision = right / answered if answered else 0.0
    recall = right / support if support else 0.0
    total = answered + support
    return LabelScore(precision, recall, 2 * right / total if total else 0.0, support)


def _span_score(scores: TypeScores) -> LabelScore:
    return LabelScore(scores.precision, scores.recall, scores.f1, scores.gold)
