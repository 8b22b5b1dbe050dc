"""What the compiled module says of itself, and what import says when it does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xfercore
from xfercore import _build

ROOT = Path(__file__).resolve().parents[1]


def _same_path() -> dict[str, str]:
    """The environment of a process that imports what this one does, however the package was installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_build_info() -> None:
    info = xfercore.build_info()
    assert set(info) == {"torch", "cuda", "cuda_archs", "compiler", "cpu_isa"}
    assert info["torch"].split("+")[0].split(".")[:2] == torch.__version__.split("+")[0].split(".")[:2]
    assert info["cpu_isa"] in ("portable", "avx2", "avx512")
    assert (info["cuda"] is None) == (info["cuda_archs"] is None)
    assert info["compiler"]


def test_version_is_that_of_the_project() -> None:
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == xfercore.__version__


def test_another_torch_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9.0+cpu")
    with pytest.raises(
        ImportError, match=r"built with torch \S+ but torch 9\.9\.0\+cpu is running; build it again"
    ):
        _build._load()


def test_a_patch_release_of_torch_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor, *_ = torch.__version__.split("+")[0].split(".")
    monkeypatch.setattr(torch, "__version__", f"{major}.{minor}.99+cu999")
    _build._load()


def test_a_missing_module_is_told_in_a_sentence(tmp_path: Path) -> None:
    package = tmp_path / "xfercore"
    package.mkdir()
    for name in ("__init__.py", "_build.py"):
        (package / name).write_text((ROOT / "xfercore" / name).read_text())
    # An editable install puts a finder of its own behind the path, which would find the module after all.
    program = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in repr(f)]; import xfercore"
    )
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ImportError: xfercore's compiled module is missing: install the package" in done.stderr


def test_import_needs_torch_alone() -> None:
    program = (
        "import sys; import torch; before = set(sys.modules)\n"
        "import xfercore, xfercore.reference, xfercore.testing\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(n for n in new if n not in sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=_same_path(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) <= {"xfercore", "torch"}, done.stdout


def test_import_of_xferkit_is_lazy() -> None:
    """The parts that need an extra or take long are imported where they are used."""
    program = (
        "import sys, xferkit\n"
        "print(*[n for n in ('accelerate', 'babel', 'matplotlib', 'jinja2', 'scipy') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=_same_path(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
