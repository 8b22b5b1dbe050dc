"""The demo: which languages help a language without labels, on real names, as an experiment with a report."""

from xferkit.demo.errors import DemoError
from xferkit.demo.run import run_demo

__all__ = ["DemoError", "run_demo"]
