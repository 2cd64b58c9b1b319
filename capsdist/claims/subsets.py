"""Parts of a packed training split, drawn by a seed, as splits of their own beside it."""

from __future__ import annotations

from capsdist.data import Split
from capsdist.data.format.samples import FieldType, GeneratedSamples, SelectedSamples
from capsdist.data.format.shards import write_samples
from capsdist.data.sets.holdout import Holdout, held_out
from capsdist.storage import join

__all__ = ["pack_part"]


def pack_part(root: str, name: str, percent: float, seed: int, *, split: str = "train") -> tuple[str, int]:
    """Write a part of a split below `root`/`name`; return the name of the new split and its images.

    percent: of the images of each class, at least one of each. Parts of one seed contain one another. A part
    that is whole is the split itself. Bytes depend on the arguments and images only, so a part that is
    there already stays as it is.

    Raises:
        DataError: the split cannot be read, the part is empty, or the folder cannot be written.
    """
    source = Split(join(root, name, split))
    index = source.index
    if percent >= 100:
        return split, index.num_samples
    fields = {field.name: FieldType(field.numpy, field.shape) for field in index.fields}
    whole = GeneratedSamples(index.num_samples, fields, lambda ids: source.fields(ids, *fields))
    chosen = held_out(whole, Holdout(share=percent / 100, seed=seed))
    part = f"{split}_{percent:.6g}_percent_seed_{seed}".replace(".", "_")
    written = write_samples(
        join(root, name, part), SelectedSamples(whole, chosen), classes=index.classes, licence=index.licence
    )
    return part, written.num_samples
