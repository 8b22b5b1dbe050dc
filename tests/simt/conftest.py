"""Puts the harness on the path and skips the folder where there is no C++ compiler."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from simt_harness import compiler


@pytest.fixture(autouse=True, scope="session")
def _compiler() -> None:
    if compiler() is None:
        pytest.skip("tests/simt compiles the kernels with a host C++ compiler: none found")
