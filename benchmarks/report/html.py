"""Makes self-contained web pages from templates, without network or scripts, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lgvit_edge._support.optional import require
from lgvit_edge._support.text import escaped


def check_report() -> None:
    """Checks, before minutes of measuring, that the packages for the page are installed.

    Raises:
        MissingDependency: jinja2 or matplotlib is not installed.
    """
    for package in ("jinja2", "matplotlib"):
        require(package, extra="report")


def rendered(name: str, *, folder: Path | None = None, **values: Any) -> str:
    """Returns the page that a template makes of ``values``.

    Templates are beside this file, and in ``folder``; those of pages extend ``base.html.j2``, which
    tells what it needs by its names. Texts may hold anything: all are escaped but pictures that
    this package drew.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    jinja = require("jinja2", extra="report")
    folders = [Path(__file__).parent, *([] if folder is None else [folder])]
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(folders),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja.StrictUndefined,
        finalize=lambda value: escaped(value) if type(value) is str else value,
    )
    page: str = environment.get_template(name).render(**values)
    return page
