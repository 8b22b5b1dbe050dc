"""Where and with what the demo's results were made."""

from __future__ import annotations

from xferkit.runs import environment
from xferkit.runs.environment import hardware, num_cores

__all__ = ["code_fingerprint", "hardware", "num_cores", "versions"]

#: Subpackages of xferkit that decide a result; the report and the command line do not.
_DECISIVE = ("data", "experiments", "methods", "metrics", "models", "objectives", "surgery", "trainers")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; "not installed" where one is missing."""
    return environment.versions(("xfercore", "torch", "numpy", "scipy", "Babel"))


def code_fingerprint() -> str:
    """SHA-256 over the code that decides a result; a changed line there makes finished runs stale."""
    return environment.code_fingerprint(_DECISIVE)
