"""Read and write splits of recipes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from capsdist.data.format.fields import check_not_decoded
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.index import INDEX_NAME, Index
from capsdist.data.format.packed import IMAGE, LABEL, LABELS, PARTS
from capsdist.data.format.source import Observe, SourceIndex
from capsdist.data.format.split import Split
from capsdist.data.recipes.index import DIGITS, SHIFTS, Base, RecipeIndex, parse_recipes, recipe_fields
from capsdist.data.recipes.overlay import Frames, Grid
from capsdist.data.recipes.pairs import Pairs
from capsdist.errors import DataError
from capsdist.storage import join
from capsdist.storage.place import beside

__all__ = ["Held", "Recipes", "check_pairs", "recipes_over", "write_recipes"]

_REMEDY = "pack it again (capsdist pack)"
_AT_ONCE = 8192  # images of the base split that are read at once
_SHARD_SIZE = 8192


class Held(NamedTuple):
    """The base split in memory: its images, its labels int64 [num_digits], and the pairs."""

    frames: Frames
    labels: np.ndarray
    pairs: Pairs


class Recipes:
    """The samples of a split of recipes, by sample id; a `Source`.

    `folder`: a local path or an s3:// URL, with the base split beside it. The base split is read wholly, and
    checked as `Split` does, when samples are asked for first; after that no file is read. Make one a process
    and thread. `size`: height and width that the images must have, if given.

    Raises:
        DataError: an index is missing or unreadable, the base split is another than the index says, or has
            too few images of other classes; while the base split is read, as `Split`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        remedy: str = "",
        size: tuple[int, int] | None = None,
    ) -> None:
        place, told = SplitFolder(folder), remedy or _REMEDY
        self.index = parse_recipes(place.read_index(told), f"{place}/{INDEX_NAME}", told)
        self.base_folder = beside(folder, self.index.base.split)
        check_not_decoded(self.index.image_shape, size, str(place))
        self.is_local = place.is_local
        self._remedy = remedy
        self._base: Split | None = Split(self.base_folder, remedy=remedy)
        _check_base(self.index, self._base.index, self.base_folder, told)
        self._held: Held | None = None

    decodes = False
    """Images are copied as they are stored."""

    def gather_into(self, ids: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Copy the samples `ids` [n] into `out`: contiguous arrays [n, ...] by the names of fields.

        `PARTS` stands for both images of each sample before they are added, uint8 [n, 2, C, H, W].
        """
        frames, labels, pairs = self.held()
        digits, shifts = pairs.of(ids)
        values = {DIGITS: digits + self.index.base.first, LABELS: labels[digits], SHIFTS: shifts}
        for name, target in out.items():
            if name == IMAGE:
                frames.overlay_into(digits, shifts, target)
            elif name == PARTS:
                for each in range(2):
                    target[:, each] = frames.shifted(digits[:, each], shifts[:, each])
            else:
                target[...] = values[name]

    def fields(self, ids: np.ndarray, *names: str) -> dict[str, np.ndarray]:
        """Return the fields `names` of `ids` [n], in that order: arrays [n, ...]; see `RecipeIndex`."""
        known = self.index.field
        out = {name: np.empty((len(ids), *known[name].shape), known[name].numpy) for name in names}
        self.gather_into(ids, out)
        return out

    def separate(self, ids: np.ndarray) -> np.ndarray:
        """Return both images of the samples `ids` [n] before they are added, uint8 [n, 2, C, H, W].

        They are padded and shifted, in the order of the fields `digits` and `labels`: what a decoder has to
        reconstruct from the capsule of each class.
        """
        parts = np.empty((len(ids), 2, *self.index.image_shape), np.uint8)
        self.gather_into(ids, {PARTS: parts})
        return parts

    def prefetch(self, ids: np.ndarray) -> None:
        """Begin to fetch the base split if it is far away; return at once."""
        if self._base is not None:
            self._base.prefetch(np.arange(self.index.base.first, self.index.base.last))

    def check_files(self) -> None:
        """Check the base split, as `check_split` does."""
        Split(self.base_folder, remedy=self._remedy).check_files()

    def verify_files(self, observe: Observe | None = None) -> None:
        """Verify the base split; observe: called with the first partner of each digit."""
        Split(self.base_folder, remedy=self._remedy).verify_files()
        if observe:
            for start in range(0, self.index.num_digits, _AT_ONCE):
                ids = np.arange(start, min(start + _AT_ONCE, self.index.num_digits))
                observe(start, self.fields(ids, *self.index.field))

    def held(self) -> Held:
        """Return the base split, which is read now if it was not before."""
        if self._held is None:
            memory = np.zeros(self.held_bytes, np.uint8)
            self.fill(memory)
            return self.hold(memory)
        return self._held

    @property
    def held_bytes(self) -> int:
        """Bytes that the base split takes in memory."""
        return self.index.num_digits * 8 + self._grid.num_bytes

    def fill(self, memory: np.ndarray) -> None:
        """Read the base split into `memory`, contiguous uint8 [held_bytes], all zeros; before `hold`."""
        base, index = self._base, self.index
        assert base is not None
        frames, labels = self._views(memory)
        base.prefetch(np.arange(index.base.first, index.base.last))
        for start in range(0, index.num_digits, _AT_ONCE):
            part = slice(start, min(start + _AT_ONCE, index.num_digits))
            ids = np.arange(part.start, part.stop) + index.base.first
            frames.digits[part], labels[part] = base.gather(ids)

    def hold(self, memory: np.ndarray) -> Held:
        """Use the base split that `fill`, of any reader of these recipes, has read into `memory`."""
        frames, labels = self._views(memory)
        labels = labels.copy()  # they may outlive the images
        try:
            pairs = Pairs(self.index, labels)
        except DataError as error:
            raise DataError(f"{self.base_folder}: {error}") from None
        self._held, self._base = Held(frames, labels, pairs), None
        return self._held

    @property
    def _grid(self) -> Grid:
        index = self.index
        channels, height, width = index.image_shape
        digit = channels, height - 2 * index.pad, width - 2 * index.pad
        return Grid(index.num_digits, digit, index.pad, index.shift)

    def _views(self, memory: np.ndarray) -> tuple[Frames, np.ndarray]:
        """Return images and labels, int64 [num_digits], that lie in `memory`."""
        grid, size = self._grid, self.index.num_digits * 8
        frames = Frames(grid.num, grid.shape, pad=grid.pad, shift=grid.shift, buffer=memory[size:])
        return frames, memory[:size].view(np.int64)


def check_pairs(index: SourceIndex, place: str | os.PathLike[str]) -> None:
    """Check that the samples of `index`, of the split at `place`, are pairs whose images are known.

    Raises:
        DataError: they are not recipes.
    """
    if not isinstance(index, RecipeIndex):
        raise DataError(
            f"{place}: has no image of each label by itself, which recipes have, and the decoder is to draw "
            "each; set --model.no-decoder-separate"
        )


def _check_base(index: RecipeIndex, base: Index, place: str, remedy: str) -> None:
    """Check that `base`, the index at `place`, is that of the split over which `index` was made."""
    if base.digest != index.base.digest:
        raise DataError(
            f"{place}: has the digest {base.digest}, its recipes were made over {index.base.digest}; {remedy}"
        )
    fits = (
        base.num_samples >= index.base.last
        and base.label_name == LABEL
        and base.classes == index.classes
        and recipe_fields(base.image_shape, index.pad) == index.fields
    )
    if not fits:
        raise DataError(f"{place}: has other samples, fields or classes than its recipes say; {remedy}")


def recipes_over(
    folder: str | os.PathLike[str],
    split: str,
    *,
    partners: int,
    pad: int,
    shift: int,
    seed: int = 0,
    first: int = 0,
    last: int | None = None,
    shard_size: int = _SHARD_SIZE,
    licence: str = "",
) -> RecipeIndex:
    """Return the index of recipes over the samples first .. last - 1 of the packed `split` in `folder`.

    folder: of the data set, a path or s3:// URL. `licence`: by default that of the split. The other arguments
    are keys of the index.

    Raises:
        DataError: the split cannot be read, a number is out of range, or there are more partners than images
            of other classes.
    """
    source = Split(join(folder, split))
    base = source.index
    last = base.num_samples if last is None else last
    if base.label_name != LABEL or not 0 <= first < last <= base.num_samples:
        raise DataError(
            f"{folder}: recipes over the images {first} to {last} of {split}; give some of its "
            f"{base.num_samples:,} images, with one label each"
        )
    index = RecipeIndex(
        base=Base(split, base.digest, first, last),
        fields=recipe_fields(base.image_shape, pad),
        classes=base.classes,
        partners=partners,
        pad=pad,
        shift=shift,
        seed=seed,
        shard_size=shard_size,
        licence=licence or base.licence,
    ).with_digest()
    Pairs(index, source.fields(np.arange(first, last), LABEL)[LABEL])
    return index


def write_recipes(folder: str | os.PathLike[str], index: RecipeIndex) -> None:
    """Write `index` as the split in `folder`, a path or s3:// URL; shards of an older split are deleted.

    Raises:
        DataError: the folder cannot be written.
    """
    place = SplitFolder(folder)
    with place.packing():
        place.publish((), index.to_json())
