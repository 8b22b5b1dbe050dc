"""What the demo says when it cannot go on: one sentence for the person at the keyboard."""

from __future__ import annotations

from xferkit.runs.errors import RunError

__all__ = ["DemoError"]

#: The demo stops as every run does: with a sentence, and what was finished stays on the disk.
DemoError = RunError
