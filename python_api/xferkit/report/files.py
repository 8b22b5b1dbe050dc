"""The whole-file writer under its former name; it lives in :mod:`xferkit.files`."""

from xferkit.files import TEMPORARY_SUFFIX, write_atomic

__all__ = ["TEMPORARY_SUFFIX", "write_atomic"]
