"""Puts the harness on the path and skips what needs a C compiler where there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import FaultServer, compiler


@pytest.fixture(scope="session")
def server() -> Iterator[FaultServer]:
    if compiler() is None:
        pytest.skip("no C compiler for the fault library: set CC or install gcc")
    with FaultServer("scenarios") as running:
        yield running
