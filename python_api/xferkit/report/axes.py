"""Round marks for the axes of figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xferkit.report.format import points
from xferkit.report.svg import Difference

__all__ = ["difference_ticks"]


def difference_ticks(rows: Sequence[Difference]) -> tuple[tuple[float, str], ...]:
    """Round marks that reach over all differences and their intervals."""
    halves = [0.0 if math.isnan(row.half_width) else row.half_width for row in rows]
    low = min([0.0, *(row.mean - half for row, half in zip(rows, halves, strict=True))])
    high = max([1.0, *(row.mean + half for row, half in zip(rows, halves, strict=True))])
    step = next((step for step in (1, 2, 5, 10, 20) if max(high, -low) / step <= 4), 50)
    ticks = range(math.floor(low / step), math.ceil(high / step) + 1)
    return tuple((tick * step, points(tick * step / 100, 0)) for tick in ticks)
