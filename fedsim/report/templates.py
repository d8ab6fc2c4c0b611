"""The page templates that stand beside this file."""

from __future__ import annotations

import functools
from pathlib import Path

import jinja2

HERE = Path(__file__).parent


@functools.cache
def template(name: str) -> jinja2.Template:
    """A template, compiled once for all the pages that one call writes. A name that it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
