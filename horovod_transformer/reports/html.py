"""Pages that need nothing but themselves: no script, no font, no picture is fetched.

What a page shows is untrusted: the templates in `templates/` escape all that is put into them, and each page
forbids scripts and resources in its own security policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from horovod_transformer.reports.formats import number

# As `templates/page.html.j2` has it.
PAGE_BEGINS = b"<!DOCTYPE html>"

_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters["number"] = number


def render(template: str, **values: Any) -> str:
    """Fill in one of the templates.

    Args:
        template: Its file name.
        values: What it shows; everything but `Markup`, such as our charts, is escaped.

    Returns:
        The page. Control characters, which HTML forbids, are U+FFFD.
    """
    page = _PAGES.get_template(template).render(values)
    return "".join(c if c in "\n\t" or c.isprintable() or c.isspace() else "\ufffd" for c in page)
