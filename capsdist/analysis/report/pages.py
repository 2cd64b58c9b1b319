"""Make pages from templates: one HTML file each, with style, scripts and pictures inside.

A page forbids itself every request (Content-Security-Policy): it can be opened from a file, sent by mail and
kept for years. Texts are escaped by the templates.
"""

from __future__ import annotations

import base64
import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from capsdist import __version__
from capsdist.analysis.report.words import duration, percent, short

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["base64_text", "page", "png"]

MAX_SIDE = 112
"""Pixels of a picture in a page, a side."""


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("capsdist.analysis.report", "templates")
    found = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def part(name: str) -> str:
        return loader.get_source(found, name)[0]  # a style or a script, for `safe`

    found.globals |= {"part": part, "version": __version__}
    found.filters |= {"duration": duration, "percent": percent, "short": short}
    return found


def page(template: str, **values: Any) -> bytes:
    """Return the page that a file of templates/ makes of `values`."""
    return _environment().get_template(template).render(**values).encode("utf-8", "backslashreplace")


def png(image: np.ndarray, max_side: int | None = MAX_SIDE) -> str:
    """Return a PNG file as a data URL, scaled down to `max_side` pixels a side; None: as it is.

    image: [H, W], [H, W, 3] or, with alpha, [H, W, 4] in [0, 1].
    """
    from PIL import Image

    picture = Image.fromarray((255 * image.clip(0, 1)).round().astype(np.uint8))
    if max_side is not None:
        picture.thumbnail((max_side, max_side))
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return f"data:image/png;base64,{base64_text(file.getvalue())}"


def base64_text(content: bytes) -> str:
    """Return `content` in base64."""
    return base64.b64encode(content).decode()
