"""Draw samples of a packed split as they are stored, and as training sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from capsdist.cli.flags import with_flags
from capsdist.config import CapsNetConfig, Config, Data, get_preset, problems
from capsdist.config.images import sides
from capsdist.console import DONE, announced, log
from capsdist.errors import ConfigError, DataError
from capsdist.storage.documents import printable

if TYPE_CHECKING:
    import numpy as np

    from capsdist.data.format.source import Source

__all__ = ["show"]

_FIRST = 4  # samples that are shown without --ids
_MOST = 64  # rows, and columns, of a picture


@dataclass(frozen=True)
class _Asked:
    """What a command line asks for."""

    split: str
    ids: tuple[int, ...]
    epochs: int
    seed: int
    picture: Path
    data: Data


def show(argv: Sequence[str]) -> int:
    """Parse the command line `argv`, draw the samples, print what they are; return the exit status.

    Raises:
        ConfigError: an unknown preset, or options of `data` that do not fit the images.
        DataError: the split cannot be read, has no such sample, or the picture cannot be written.
    """
    asked = _parsed(argv)
    if not 0 <= asked.epochs < _MOST or len(asked.ids) > _MOST:
        raise DataError(
            f"epochs={asked.epochs} and {len(asked.ids)} ids: a picture has up to {_MOST} rows and columns; "
            "give fewer"
        )
    with announced(log, f"reading {asked.split}"):
        from capsdist.data.format.source import open_split

        size = asked.data.decode_size
        split = open_split(asked.split, size=sides(size) if size else None)
        shape = split.index.image_shape
        ids = asked.ids or tuple(range(min(_FIRST, split.index.num_samples)))
        samples = _read(asked.split, split, ids)
    _check(asked.data, shape)
    _draw(asked, split.index.classes, ids, samples)
    for number, line in zip(ids, _lines(split, samples), strict=True):
        print(f"{number}: {line}")
    print(f"picture: {asked.picture}")
    return DONE


def _parsed(argv: Sequence[str]) -> _Asked:
    name = next((word for before, word in pairwise(argv) if before == "--preset"), "")
    base = get_preset(name) if name else Config(data=Data(shift=0))

    def parse(
        split: Annotated[str, tyro.conf.Positional],
        ids: tuple[int, ...] = (),
        epochs: int = 6,
        seed: int = 0,
        preset: str = "",
        picture: Path = Path("samples.png"),
        data: Data = base.data,
    ) -> _Asked:
        """Draw samples of a packed split, as they are stored and as training sees them.

        Args:
            split: Path or s3:// URL of the split.
            ids: Ids of the samples: places in storage order; default: the first 4.
            epochs: Columns of augmented images: as epochs 0, 1, .. of a run show them; 0: only stored ones.
            seed: `train.seed` of that run.
            preset: Preset that the options of `data` start from; without one, nothing is augmented.
            picture: PNG file to write.
            data: How training changes images; `mixup`, which depends on the step, is not drawn.
        """
        return _Asked(split, ids, epochs, seed, picture, data)

    return tyro.cli(parse, args=with_flags(argv, base), prog="capsdist show")


def _read(place: str, split: Source, ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Return all fields of the samples `ids`: arrays [n, ...].

    Raises:
        DataError: there is no such sample.
    """
    import numpy as np

    num = split.index.num_samples
    if wrong := [number for number in ids if not 0 <= number < num]:
        raise DataError(f"{place}: has no sample {wrong[0]}; give --ids of 0 to {num - 1:,}")
    fields = split.index.field.items()
    found = {name: np.empty((len(ids), *field.shape), field.numpy) for name, field in fields}
    split.gather_into(np.array(ids), found)
    return found


def _check(data: Data, image_shape: tuple[int, int, int]) -> None:
    """Check that options of `data` fit images of this shape.

    Raises:
        ConfigError: naming all that do not.
    """
    channels, height, width = image_shape
    size = data.crop or data.resize or (height, width)
    config = Config(model=CapsNetConfig(in_channels=channels, image_size=size), data=data)
    if found := [each for each in problems(config) if each.field.startswith("data.")]:
        raise ConfigError(found)


def _draw(
    asked: _Asked, classes: Sequence[str], ids: Sequence[int], samples: Mapping[str, np.ndarray]
) -> None:
    """Draw a row for each sample: what is stored, then what the epochs show. Normalising is left out."""
    import torch

    from capsdist.analysis.sheets import Cell, draw_cells, image_of, labels_of, titled, write_png
    from capsdist.data import Transform

    transform = replace(
        Transform.of(asked.data, train=True), standardise=False, normalise_mean=(), normalise_std=()
    )
    images, numbers = torch.from_numpy(samples["image"]), torch.tensor(ids)
    shown = [transform(images, numbers, asked.seed, epoch).numpy() for epoch in range(asked.epochs)]
    rows = [
        [
            Cell(image_of(samples["image"][n]), titled(labels_of(samples)[n], number, classes)),
            *(Cell(image_of(each[n]), f"epoch {epoch}") for epoch, each in enumerate(shown)),
        ]
        for n, number in enumerate(ids)
    ]
    heading = f"{asked.split}: stored" + (f", and augmented with seed {asked.seed}" if shown else "")
    write_png(draw_cells(rows, heading), asked.picture)


def _lines(split: Source, samples: Mapping[str, np.ndarray]) -> list[str]:
    """Return what each sample is, in words: its classes, then its further fields."""
    from capsdist.analysis.drawing import class_names

    index = split.index
    further = [name for name in samples if name not in ("image", index.label_name)]
    return [
        ", ".join(
            [
                printable(class_names(labels, index.classes)),
                *(f"{name} {samples[name][n].tolist()}" for name in further),
            ]
        )
        for n, labels in enumerate(samples[index.label_name])
    ]
