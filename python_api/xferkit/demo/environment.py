"""Where and with what a result was made: hardware, versions, and a hash of the code that made it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path

__all__ = ["code_fingerprint", "hardware", "num_cores", "versions"]

#: Subpackages of xferkit that decide a result; the report and the command line do not.
_DECISIVE = ("data", "experiments", "methods", "metrics", "models", "objectives", "trainers")

_PACKAGES = ("xfercore", "torch", "numpy", "scipy", "Babel")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; "not installed" where one is missing."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def num_cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware() -> dict[str, str]:
    """Processor, number of cores, memory and system, as plain text."""
    try:
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        memory = "unknown"
    return {
        "processor": _processor(),
        "cores": str(num_cores()),
        "memory": memory,
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def code_fingerprint() -> str:
    """SHA-256 over the sources (and the compiled module) of xfercore and of xferkit's decisive subpackages.

    A changed line there makes finished runs stale; versions alone would not show it in a working tree.
    """
    digest = hashlib.sha256()
    for package, subpackages in (("xfercore", None), ("xferkit", _DECISIVE)):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            root = Path(location)
            for path in sorted(root.rglob("*")):
                relative = path.relative_to(root)
                if path.suffix not in {".py", ".so"} or (
                    subpackages and relative.parts[0] not in subpackages
                ):
                    continue
                digest.update(f"{package}/{relative.as_posix()}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()
