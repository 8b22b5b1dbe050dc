"""Pure functions from labels, predictions and repeated scores to numbers."""

from xferkit.metrics.classification import accuracy, binomial_error, macro_f1, majority_rate, token_accuracy
from xferkit.metrics.intervals import (
    Interval,
    Verdict,
    interval_record,
    paired_difference,
    t_interval,
    verdict,
)
from xferkit.metrics.retrieval import mean_reciprocal_rank, precision_at
from xferkit.metrics.spans import Span, SpanScheme, SpanScores, TypeScores, bio_spans, span_f1

__all__ = [
    "Interval",
    "Span",
    "SpanScheme",
    "SpanScores",
    "TypeScores",
    "Verdict",
    "accuracy",
    "binomial_error",
    "bio_spans",
    "interval_record",
    "macro_f1",
    "majority_rate",
    "mean_reciprocal_rank",
    "paired_difference",
    "precision_at",
    "span_f1",
    "t_interval",
    "token_accuracy",
    "verdict",
]
