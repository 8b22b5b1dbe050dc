"""The command line: reads arguments, calls the package, turns errors into sentences; no logic of its own."""

from xferkit.cli.main import main

__all__ = ["main"]
