"""Pure functions from labels, predictions and repeated scores to numbers."""

from xferkit.metrics.classification import accuracy, binomial_error, macro_f1, majority_rate
from xferkit.metrics.intervals import Interval, Verdict, paired_difference, t_interval, verdict

__all__ = [
    "Interval",
    "Verdict",
    "accuracy",
    "binomial_error",
    "macro_f1",
    "majority_rate",
    "paired_difference",
    "t_interval",
    "verdict",
]
