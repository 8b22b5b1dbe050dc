"""Reports: one self-contained HTML page with figures drawn as SVG, PNGs beside it, whole files or none."""

from xferkit.report.files import write_atomic
from xferkit.report.html import render_page

__all__ = ["render_page", "write_atomic"]
