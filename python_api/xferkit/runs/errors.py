"""Why a run stopped, in one sentence for the person at the keyboard; bad input is a ValueError instead."""

from __future__ import annotations

__all__ = ["RunError"]


class RunError(RuntimeError):
    """Something failed that was no fault of the input; what was finished stays on the disk.

    Attributes:
        details: traceback of a process that failed, for whoever looks for the fault; else empty.
    """

    details: str = ""
