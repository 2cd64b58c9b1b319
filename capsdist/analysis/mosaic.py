"""Draw a table of small images as one picture: a row and a column of words, no frames between.

One image for the whole table: a sheet of 176 axes would take seconds to lay out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from capsdist.analysis.drawing import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_mosaic", "in_colour"]

_TEXT_POINTS = 8
_LETTER_INCHES, _LINE_INCHES = 0.065, 0.18  # of that size, on average


def draw_mosaic(
    tiles: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    heading: str,
    *,
    colours: Sequence[str] = (),
    tile_inches: float = 0.85,
) -> Figure:
    """Return the figure of a table of images.

    Args:
        tiles: [R, N, H, W] grey or [R, N, H, W, 3], in [0, 1].
        rows: what stands left of each of the R rows.
        columns: what stands above each of the N columns; may have several lines.
        heading: of the figure; may have several lines.
        colours: of the words above each column; default: black.
        tile_inches: width of an image; more where words above a column are longer.
    """
    import matplotlib
    from matplotlib.figure import Figure

    num_rows, num_columns, height, width = tiles.shape[:4]
    gap = max(1, round(min(height, width) / 14))
    canvas = np.ones((num_rows * (height + gap), num_columns * (width + gap), *tiles.shape[4:]))
    for row, line in enumerate(tiles):
        for column, tile in enumerate(line):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = tile
    canvas = canvas[:-gap, :-gap]

    above = [text.split("\n") for text in columns]
    tile_inches = max(tile_inches, _LETTER_INCHES * max(len(line) for lines in above for line in lines))
    table = tile_inches * num_columns, tile_inches * (height + gap) / (width + gap) * num_rows
    left = 0.25 + _LETTER_INCHES * max(map(len, rows))
    top = 0.2 + _LINE_INCHES * (heading.count("\n") + 1 + max(map(len, above)))
    wide = 0.2 + 1.35 * _LETTER_INCHES * max(map(len, heading.split("\n")))
    size = max(left + table[0] + 0.1, wide), top + table[1] + 0.1
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=size, dpi=110, facecolor="white")
        figure.suptitle(
            heading, x=0.1 / size[0], y=1 - 0.08 / size[1], ha="left", va="top", size=9, weight="bold",
            parse_math=False,
        )  # fmt: skip
        axes = figure.add_axes((left / size[0], 0.1 / size[1], table[0] / size[0], table[1] / size[1]))
        axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_xticks(np.arange(num_columns) * (width + gap) + (width - 1) / 2, columns)
        axes.set_yticks(np.arange(num_rows) * (height + gap) + (height - 1) / 2, rows)
        axes.tick_params(
            length=0, labelsize=_TEXT_POINTS, top=True, bottom=False, labeltop=True, labelbottom=False
        )
        axes.spines[:].set_visible(False)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set_parse_math(False)
        for label, colour in zip(axes.get_xticklabels(), colours, strict=False):
            label.set_color(colour)
    return figure


def in_colour(images: np.ndarray) -> np.ndarray:
    """Return images [N, H, W] or [N, H, W, 3] as [N, H, W, 3]."""
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
