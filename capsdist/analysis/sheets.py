"""Pictures of samples: the contact sheet of a split, and samples as training sees them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from capsdist.analysis.drawing import COLUMNS, STYLE, class_names, displayable, draw_image
from capsdist.data.format.packed import IMAGE, LABEL, LABELS
from capsdist.errors import DataError
from capsdist.storage.documents import printable
from capsdist.storage.durable import write_durably

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Cell", "ClassCounts", "Picks", "draw_cells", "image_of", "in_rows", "labels_of", "titled", "write_png",
]  # fmt: skip

NUM_SHOWN = 96
"""Images of a contact sheet."""
_LONGEST = 16  # letters of a name in a title
_CELL_INCHES = 1.15
_SMALL = 1 / 4, 4.0  # proportions of height to width that cells follow


@dataclass(frozen=True)
class Cell:
    """An image [H, W] or [H, W, 3] in [0, 1], and what stands above it."""

    image: np.ndarray
    title: str


class ClassCounts:
    """Counts the images of each class; call it as `Observe`. An image of several labels counts for each."""

    def __init__(self) -> None:
        self._counts = np.zeros(0, np.int64)
        self.num_images = 0

    def __call__(self, first: int, fields: Mapping[str, np.ndarray]) -> None:
        """Count the samples of a block."""
        labels = labels_of(fields)
        self.num_images += len(labels)
        found = np.bincount(labels[labels >= 0])
        counts = np.zeros(max(len(found), len(self._counts)), np.int64)
        counts[: len(self._counts)] = self._counts
        counts[: len(found)] += found
        self._counts = counts

    def of(self, num_classes: int) -> list[int]:
        """Return the number of images of each of `num_classes` classes."""
        return [*self._counts.tolist(), *[0] * (num_classes - len(self._counts))]


class Picks:
    """Picks images of all classes alike, from all over a split; call it as `Observe`.

    num: about so many; of more classes, so many classes are shown. Memory: these images, at least one of each
    class, and a block.
    """

    def __init__(self, num: int = NUM_SHOWN) -> None:
        self._num = num
        self._kept: dict[int, list[tuple[float, int, np.ndarray, np.ndarray]]] = {}  # rank, id, image, labels

    def __call__(self, first: int, fields: Mapping[str, np.ndarray]) -> None:
        """Consider the samples of a block: those with the lowest ranks of a class stay."""
        labels = labels_of(fields)
        ranks = np.random.default_rng(first).random(len(labels))
        main = labels.reshape(len(labels), -1).max(1)
        present = np.unique(main).tolist()
        most = max(1, self._num // len(self._kept.keys() | set(present)))
        for label in present:
            members = np.flatnonzero(main == label)
            best = members[np.argsort(ranks[members])][:most]
            own = self._kept.setdefault(label, [])
            own += [(float(ranks[n]), first + int(n), fields[IMAGE][n].copy(), labels[n]) for n in best]
            own.sort(key=lambda pick: pick[:2])
        for own in self._kept.values():
            del own[most:]

    def cells(self, classes: Sequence[str]) -> list[Cell]:
        """Return the images that were picked, one class after the other, with id and class as titles."""
        chosen = sorted(self._kept)
        if len(chosen) > self._num:
            chosen = [chosen[n] for n in np.linspace(0, len(chosen) - 1, self._num).round().astype(int)]
        picks = [pick for label in chosen for pick in self._kept[label]]
        return [Cell(image_of(image), titled(labels, number, classes)) for _, number, image, labels in picks]


def labels_of(fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the labels of samples: int64 [n], or [n, K] for up to K classes, -1 where there are fewer."""
    return fields[LABEL] if LABEL in fields else fields[LABELS]


def image_of(image: np.ndarray) -> np.ndarray:
    """Return an image [C, H, W], uint8 or float in [0, 1], as it is drawn."""
    return displayable(image[None] / (255 if image.dtype == np.uint8 else 1))[0]


def titled(labels: np.ndarray, number: int, classes: Sequence[str]) -> str:
    """Return the title of a sample: its class, or classes, in 16 letters, and its id below."""
    name = printable(class_names(labels, classes))
    return f"{name if len(name) <= _LONGEST else f'{name[: _LONGEST - 1]}.'}\n{number}"


def draw_cells(rows: Sequence[Sequence[Cell]], heading: str) -> Figure:
    """Return a figure of the images in `rows`, each below its title; rows may differ in length."""
    import matplotlib
    from matplotlib.figure import Figure

    height, width = rows[0][0].image.shape[:2]
    low, high = _SMALL
    cell_inches = _CELL_INCHES * min(max(height / width, low), high) + 0.42
    columns = max(map(len, rows))
    size = (max(columns * (_CELL_INCHES + 0.1), 6.0), len(rows) * cell_inches + 0.5)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
        figure.suptitle(heading, x=0.012, ha="left", size=11, weight="bold")
        for axes_of_row, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
            for axes in axes_of_row:
                axes.axis("off")
            for axes, cell in zip(axes_of_row, row, strict=False):
                draw_image(axes, cell.image, cell.title)
    return figure


def in_rows(cells: Sequence[Cell]) -> list[Sequence[Cell]]:
    """Return `cells`, 12 in a row."""
    return [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure as the PNG file `path`.

    Raises:
        DataError: it cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    try:
        write_durably(path, drawn.getvalue())
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be written ({reason}); give another file with --picture") from None
