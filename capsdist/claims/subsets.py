"""Parts of a packed training split, drawn by a seed, as splits of their own beside it."""

from __future__ import annotations

from dataclasses import dataclass

from capsdist.data import Split
from capsdist.data.format.samples import FieldType, GeneratedSamples, SelectedSamples
from capsdist.data.format.shards import write_samples
from capsdist.data.sets.holdout import Holdout, held_out
from capsdist.storage import join

__all__ = ["Part", "part_of"]

_WHOLE = "train"


@dataclass(frozen=True)
class Part:
    """A part of the training split of the packed set at `place`: name of its split, and how many images.

    samples: None if it is the whole split; classes, licence: of that.
    """

    place: str
    name: str
    num_images: int
    samples: SelectedSamples | None = None
    classes: tuple[str, ...] = ()
    licence: str = ""

    def write(self) -> None:
        """Write it beside the whole split; one that is there already stays as it is.

        Bytes depend on the arguments of `part_of` and the images only.

        Raises:
            DataError: the images cannot be read, or the folder cannot be written.
        """
        if self.samples is not None:
            place = join(self.place, self.name)
            write_samples(place, self.samples, classes=self.classes, licence=self.licence)


def part_of(place: str, percent: float, seed: int) -> Part:
    """Return a part of the training split of the packed set at `place`; it is not written yet.

    percent: of the images of each class, at least one of each. Parts of one seed contain one another. A part
    that is whole is the split itself.

    Raises:
        DataError: the split cannot be read, or the part is empty.
    """
    source = Split(join(place, _WHOLE))
    index = source.index
    if percent >= 100:
        return Part(place, _WHOLE, index.num_samples)
    fields = {field.name: FieldType(field.numpy, field.shape) for field in index.fields}
    whole = GeneratedSamples(index.num_samples, fields, lambda ids: source.fields(ids, *fields))
    chosen = held_out(whole, Holdout(share=percent / 100, seed=seed))
    name = f"{_WHOLE}_{percent:.6g}_percent_seed_{seed}".replace(".", "_")
    samples = SelectedSamples(whole, chosen)
    return Part(place, name, len(chosen), samples, index.classes, index.licence)
