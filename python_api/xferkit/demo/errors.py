"""What the demo says when it cannot go on: one sentence for the person at the keyboard."""

from __future__ import annotations

__all__ = ["DemoError"]


class DemoError(RuntimeError):
    """The demo stopped for a reason its message explains; what was finished stays on the disk.

    Attributes:
        details: traceback of a run that failed, for whoever looks for the fault; else empty.
    """

    details: str = ""
