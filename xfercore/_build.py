"""Loads the compiled module and compares what it was built with to the torch that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from xfercore._C import BuildInfo

__all__ = ["build_info"]


def _release(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _load() -> None:
    try:
        from xfercore import _C
    except ImportError as error:
        if "_C" in str(error) and "cannot import name" in str(error):
            raise ImportError(
                "xfercore's compiled module is missing: install the package (pip install .) instead of importing "
                "it from its source folder."
            ) from error
        raise ImportError(
            f"xfercore's compiled module does not load with torch {torch.__version__} ({error}); build it again "
            "against this torch: pip install --force-reinstall --no-deps --no-cache-dir ."
        ) from error
    built = _C.build_info()["torch"]
    if _release(built) != _release(torch.__version__):
        raise ImportError(
            f"xfercore was built with torch {built} but torch {torch.__version__} is running; build it again against "
            "this torch: pip install --force-reinstall --no-deps --no-cache-dir ."
        )


_load()


def build_info() -> BuildInfo:
    """What the compiled module was built with.

    Returns:
        ``torch`` (version built against), ``cuda`` and ``cuda_archs`` (``None`` without CUDA kernels),
        ``compiler``, and ``cpu_isa``, the instruction set its CPU kernels use on this machine
        (``avx512``, ``avx2`` or ``portable``).
    """
    from xfercore import _C

    return _C.build_info()
