"""Where and with what a result was made: hardware, versions, commit, and a hash of the code that made it.

Standard library only: the command line asks for versions before it pays for torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import subprocess
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path

__all__ = ["PACKAGES", "code_fingerprint", "hardware", "num_cores", "source_commit", "versions"]

#: Packages whose version may change what a training computes.
PACKAGES = ("xfercore", "torch", "accelerate", "safetensors", "tokenizers", "numpy", "scipy")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of `packages`; "not installed" where one is missing."""
    found = {"python": platform.python_version()}
    for name in packages:
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


def source_commit() -> str | None:
    """Commit of the checkout that xferkit runs from, "-dirty" behind it where files differ; None elsewhere.

    An installed package has no commit of its own, even where it lies inside somebody's repository.
    """
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(package), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() / "python_api" / "xferkit" != package:
        return None
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def code_fingerprint(subpackages: Collection[str]) -> str:
    """SHA-256 over the sources (and the compiled module) of xfercore and of `subpackages` of xferkit.

    A changed line there makes finished runs stale; versions alone would not show it in a working tree.
    """
    digest = hashlib.sha256()
    for package, wanted in (("xfercore", None), ("xferkit", subpackages)):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            root = Path(location)
            for path in sorted(root.rglob("*")):
                relative = path.relative_to(root)
                if path.suffix not in {".py", ".so"} or (wanted and relative.parts[0] not in wanted):
                    continue
                digest.update(f"{package}/{relative.as_posix()}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()
