"""Scores of spans that BIO tags mark: named entities, slots.

Where tags break the scheme (an I- without its B-), there are two readings in use, and scores of one are not
scores of the other, so the reading has a name:

- ``"conlleval"``: that of the CoNLL shared tasks' script: an I- that continues no span of its type starts one.
- ``"strict"`` (IOB2): a span starts with B- alone; an I- that continues no span of its type is no span.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = ["Span", "SpanScheme", "SpanScores", "TypeScores", "as_bio", "bio_spans", "is_bio", "span_f1"]

SpanScheme = Literal["conlleval", "strict"]


class Span(NamedTuple):
    """Tokens ``start`` to ``end - 1`` of a sentence, marked as ``kind``."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class TypeScores:
    """Scores of the spans of one type, or of all; 0 where nothing could be right (no span to divide by).

    Attributes:
        precision: share of the predicted spans that are gold spans, type and both ends right.
        recall: share of the gold spans that were predicted.
        f1: their harmonic mean.
        gold: number of gold spans.
        predicted: number of predicted spans.
        right: number of spans that are both.
    """

    precision: float
    recall: float
    f1: float
    gold: int
    predicted: int
    right: int

    @classmethod
    def of(cls, gold: int, predicted: int, right: int) -> TypeScores:
        """The scores from three counts."""
        precision = right / predicted if predicted else 0.0
        recall = right / gold if gold else 0.0
        f1 = 2 * right / (gold + predicted) if gold + predicted else 0.0
        return cls(precision, recall, f1, gold, predicted, right)


@dataclass(frozen=True)
class SpanScores(TypeScores):
    """Micro scores over the spans of all types.

    Attributes:
        per_type: scores by type, of all types that are gold or predicted, sorted by name.
        scheme: the reading of the tags.
    """

    per_type: dict[str, TypeScores] = field(default_factory=dict)
    scheme: SpanScheme = "conlleval"


def is_bio(tag: str) -> bool:
    """Whether a tag is ``O``, ``B-TYPE`` or ``I-TYPE``."""
    prefix, _, name = tag.partition("-")
    return tag == "O" or (prefix in ("B", "I") and bool(name))


def as_bio(tags: Sequence[str]) -> tuple[str, ...]:
    """The tags with ``O`` in place of those outside of the scheme, such as slips of annotators."""
    return tuple(tag if is_bio(tag) else "O" for tag in tags)


def bio_spans(tags: Sequence[str], scheme: SpanScheme = "conlleval") -> list[Span]:
    """The spans of one sentence, in order.

    Args:
        tags: ``O``, ``B-TYPE`` or ``I-TYPE`` for each token.
        scheme: the reading of tags that break the scheme.

    Raises:
        ValueError: another tag or scheme.
    """
    if scheme not in ("conlleval", "strict"):
        raise ValueError(f"bio_spans: scheme must be 'conlleval' or 'strict', got {scheme!r}")
    spans, start, kind = [], 0, None
    for place, tag in enumerate(tags):
        prefix, _, name = tag.partition("-")
        if not is_bio(tag):
            raise ValueError(f"bio_spans: token {place} has tag {tag!r}, expected 'O', 'B-TYPE' or 'I-TYPE'")
        if prefix == "I" and name == kind:
            continue
        if kind is not None:
            spans.append(Span(start, place, kind))
            kind = None
        if prefix == "B" or (prefix == "I" and scheme == "conlleval"):
            start, kind = place, name
    if kind is not None:
        spans.append(Span(start, len(tags), kind))
    return spans


def span_f1(
    gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]], scheme: SpanScheme = "conlleval"
) -> SpanScores:
    """Precision, recall and F1 of spans, micro and by type: a span counts when its type and both ends are right.

    Args:
        gold: the tags of each sentence.
        predicted: predicted tags of the same sentences.
        scheme: the reading of tags, on both sides.

    Raises:
        ValueError: sentences that do not pair up, or a tag that is none.
    """
    wanted: Counter[str] = Counter()
    found: Counter[str] = Counter()
    right: Counter[str] = Counter()
    number = 0
    gold, predicted = iter(gold), iter(predicted)
    for number, tags in enumerate(gold, 1):
        guess = next(predicted, None)
        if guess is None or len(guess) != len(tags):
            got = "none" if guess is None else f"{len(guess)}"
            raise ValueError(
                f"span_f1: sentence {number} has {len(tags)} gold tags, expected as many predicted ones, got {got}"
            )
        spans, guesses = set(bio_spans(tags, scheme)), set(bio_spans(guess, scheme))
        wanted.update(span.kind for span in spans)
        found.update(span.kind for span in guesses)
        right.update(span.kind for span in spans & guesses)
    if next(predicted, None) is not None:
        raise ValueError(
            f"span_f1: there are {number} gold sentences and more predicted ones, expected as many"
        )
    kinds = sorted(wanted.keys() | found.keys())
    per_type = {kind: TypeScores.of(wanted[kind], found[kind], right[kind]) for kind in kinds}
    total = TypeScores.of(wanted.total(), found.total(), right.total())
    return SpanScores(**vars(total), per_type=per_type, scheme=scheme)
