"""What every measured cause has: a flag, an effect on one scale, a sentence, a record; and checks of
input."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from xferkit.metrics.intervals import Interval, interval_record

__all__ = ["Cause", "Flag", "all_flags", "finite", "flag_above", "flag_excess", "interval_text", "relative"]

#: Is the cause there? "not clear": the numbers at hand would look like this with and without it.
Flag = Literal["yes", "no", "not clear"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cause(ABC):
    """One possible cause, measured against its own null: a sign that stands beside a loss, not a proof.

    Attributes:
        flag: whether it is there.
        effect: excess over the null as a share of the largest possible one, in [0, 1]; orders causes of one
            flag.
    """

    cause: ClassVar[str]
    flag: Flag
    effect: float

    @abstractmethod
    def sentence(self) -> str:
        """One plain sentence with the numbers."""

    def to_json(self) -> dict[str, Any]:
        """Every number, the cause's name and its sentence, as JSON holds them: NaN is None."""
        return {"cause": self.cause, "sentence": self.sentence(), **_record(self)}


def finite(owner: str, name: str, values: npt.ArrayLike, dims: str, *, low: float = -math.inf) -> Floats:
    """An array of finite numbers of the named dimensions, none of them empty.

    Args:
        owner: function that is at work, for the sentence.
        name: its argument.
        values: the numbers.
        dims: names of the dimensions, such as ``"seeds, looks"``.
        low: smallest value allowed.

    Raises:
        ValueError: another number of dimensions, none of a dimension, a value that is not finite or below
            `low`.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != len(dims.split(",")) or array.size == 0:
        raise ValueError(
            f"{owner}: {name} must be of shape [{dims}], each at least 1, got shape {list(array.shape)}"
        )
    bad = ~np.isfinite(array) | (array < low)
    if bad.any():
        place = [int(n) for n in np.argwhere(bad)[0]]
        wanted = "finite numbers" if low == -math.inf else f"finite numbers of at least {low:g}"
        raise ValueError(f"{owner}: {name} must be {wanted}, got {array[tuple(place)]:g} at {place}")
    return array


def flag_above(interval: Interval, margin: float = 0.0) -> Flag:
    """Of a difference that does harm where it is positive.

    yes: the interval lies above 0 and its mean is at least `margin`; no: it ends below `margin` (at 0 or
    below, for a margin of 0); else, and for a single run, not clear. Runs that are all the same never say
    yes: they are one run whose seed was not used.
    """
    if math.isnan(interval.half_width):
        return "not clear"
    if interval.low > 0.0 and interval.mean >= margin:
        return "yes" if interval.half_width > 1e-9 * interval.mean else "not clear"
    return "no" if interval.high < margin or interval.high <= 0.0 else "not clear"


def flag_excess(observed: float, null: npt.ArrayLike, margin: float, alpha: float) -> tuple[Flag, float]:
    """Of a number that does harm where it is above resampled ones, with its p-value.

    p = (1 + #{null >= observed}) / (1 + #null). yes: p <= alpha and observed - mean(null) >= `margin`. Else
    no, where an excess of `margin` would have been seen: quantile(null, 1 - alpha) - mean(null) < `margin`.
    Else not clear.

    Source: Davison and Hinkley (1997), Bootstrap methods and their application, section 4.2.
    """
    values = np.asarray(null, dtype=np.float64)
    p = (1.0 + float(np.sum(values >= observed - 1e-12))) / (1.0 + values.size)
    mean = float(values.mean())
    if p <= alpha and observed - mean >= margin:
        return "yes", p
    return ("no" if float(np.quantile(values, 1.0 - alpha)) - mean < margin else "not clear"), p


def all_flags(flags: Sequence[Flag]) -> Flag:
    """Of several parts: yes where one is, no where all are."""
    if "yes" in flags:
        return "yes"
    return "no" if flags and all(flag == "no" for flag in flags) else "not clear"


def relative(excess: float, most: float) -> float:
    """An excess over the null as a share of the largest possible one, cut to [0, 1]."""
    if not most > 0.0 or math.isnan(excess):
        return 0.0
    return float(min(1.0, max(0.0, excess / most)))


def interval_text(interval: Interval, confidence: float, unit: str = "seeds", digits: int = 2) -> str:
    """``-0.31 (95 % interval -0.40 to -0.22, 5 seeds)``."""
    if math.isnan(interval.half_width):
        return f"{interval.mean:.{digits}f} (n = 1, no interval)"
    ends = f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"
    return f"{interval.mean:.{digits}f} ({100 * confidence:g} % interval {ends}, {interval.n} {unit})"


def _record(value: Any) -> Any:
    if isinstance(value, Interval):
        return interval_record(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _record(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_record(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
