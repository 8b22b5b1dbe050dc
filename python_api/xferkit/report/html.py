"""One self-contained HTML page from a packaged template; everything that is not a figure is escaped."""

from __future__ import annotations

from typing import Any

import jinja2

from xferkit.report import format as numbers
from xferkit.report.svg import PATTERNS

__all__ = ["render_page"]


def render_page(template: str, **content: Any) -> str:
    """Fill `template`, a file of ``report/templates``, with `content`.

    Autoescape is on, so text of any origin is safe; figures come as ``Markup``. A name the template uses and
    `content` lacks is an error rather than an empty place.

    Raises:
        jinja2.TemplateError: no such template, or a name is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xferkit.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in numbers.__all__:
        environment.filters[name] = getattr(numbers, name)
    return environment.get_template(template).render(patterns=PATTERNS, **content)
