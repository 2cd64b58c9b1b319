"""Take a part of the training samples for validation; nothing of `train` is copied before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capsdist.data.format.order import permutation
from capsdist.data.format.packed import LABEL, LABELS
from capsdist.data.format.samples import Samples, SelectedSamples, sample_bytes
from capsdist.data.sets.members import Members
from capsdist.data.sets.spec import TRAIN_PART, VALIDATION
from capsdist.errors import DataError

__all__ = ["Holdout", "divided", "divided_members", "held_out"]

_READ_BYTES = 64 << 20  # at once, to look at labels


@dataclass(frozen=True)
class Holdout:
    """Which training samples are for validation.

    Attributes:
        share: part of the samples of each class, above 0 and below 1, drawn by `seed`.
        first: in its place, this number of samples from the beginning of `train`.
        seed: another one draws other samples.
    """

    share: float = 0.0
    first: int = 0
    seed: int = 0


def divided(samples: Samples, holdout: Holdout, together: Sequence[str] = ()) -> dict[str, Samples]:
    """Return `samples` as the splits `train_part` and `validation`; see `held_out`.

    Raises:
        DataError: as `held_out`.
    """
    ids = held_out(samples, holdout, together)
    others = np.setdiff1d(np.arange(len(samples)), ids, assume_unique=True)
    return {TRAIN_PART: SelectedSamples(samples, others), VALIDATION: SelectedSamples(samples, ids)}


def divided_members(members: Members, holdout: Holdout) -> dict[str, Members]:
    """Return image files as the splits `train_part` and `validation`; see `held_out`.

    Raises:
        DataError: as `held_out`.
    """
    ids = held_out(members, holdout)
    others = np.setdiff1d(np.arange(len(members)), ids, assume_unique=True)
    return {TRAIN_PART: members.take(others), VALIDATION: members.take(ids)}


def held_out(samples: Samples | Members, holdout: Holdout, together: Sequence[str] = ()) -> np.ndarray:
    """Return the numbers of the samples for validation, ascending, int64.

    Samples with equal values in all fields `together` stay on one side; `share` is of their groups then. A
    class with three groups or more has one for validation at least. Samples of several labels are of a class
    for each combination. Memory: the labels and those fields of all samples, and 64 MiB of samples.

    Raises:
        DataError: `share` or `first` is out of range, both or none are given, no sample is chosen, or `first`
            is given with `together`.
    """
    _check(holdout, len(samples), together)
    if holdout.first:
        return np.arange(holdout.first)
    if isinstance(samples, Members):
        return _drawn(samples.labels, None, holdout)
    label = LABEL if LABEL in samples.fields else LABELS
    columns = _columns(samples, (label, *together))
    keys = np.stack([columns[name].reshape(len(samples)) for name in together], axis=1) if together else None
    return _drawn(columns[label], keys, holdout)


def _drawn(labels: np.ndarray, keys: np.ndarray | None, holdout: Holdout) -> np.ndarray:
    """Return the numbers of the samples for validation; those of equal rows of `keys` are one group."""
    num = len(labels)
    names, strata = _numbered(labels)
    groups, firsts = np.arange(num), np.arange(num)
    if keys is not None:
        distinct, groups = _numbered(keys)
        firsts = np.full(len(distinct), num)
        np.minimum.at(firsts, groups, np.arange(num))
    strata = strata[firsts]  # of groups
    ends = np.cumsum(np.bincount(strata, minlength=len(names)))[:-1]
    by_stratum = np.split(np.argsort(strata, kind="stable"), ends)
    chosen = np.zeros(len(firsts), bool)
    for name, members in zip(names.tolist(), by_stratum, strict=True):
        wanted = max(round(holdout.share * len(members)), int(len(members) >= 3))
        chosen[members[permutation(len(members), "validation", holdout.seed, name)[:wanted]]] = True
    ids = np.flatnonzero(chosen[groups])
    if not 0 < len(ids) < num:
        raise DataError(
            f"validation={holdout.share:g}: takes {len(ids):,} of {num:,} images of train; give another share"
        )
    return ids


def _check(holdout: Holdout, num: int, together: Sequence[str]) -> None:
    if bool(holdout.share) == bool(holdout.first):
        raise DataError(
            f"validation={holdout.share:g} and validation-first={holdout.first}: give one of them, a share "
            "of each class or a number of images"
        )
    if not 0 <= holdout.share < 1:
        raise DataError(f"validation={holdout.share:g}: give a share above 0 and below 1")
    if not 0 <= holdout.first < num:
        raise DataError(f"validation-first={holdout.first}: train has {num:,} images; give 1 to {num - 1:,}")
    if holdout.first and together:
        raise DataError(
            f"validation-first={holdout.first}: images of the same {', '.join(together)} belong together; "
            "give a share with --validation"
        )


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct rows of `values`, sorted, and for each row its number among them."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]  # rows of one number sort faster as numbers
    distinct, numbers = np.unique(values, axis=0, return_inverse=True)
    return distinct, numbers.reshape(-1)


def _columns(samples: Samples, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the fields `names` of all samples, read in parts."""
    step = max(1, _READ_BYTES // sample_bytes(samples.fields))
    parts = [
        {name: read[name].copy() for name in names}  # not a view that would keep the images
        for start in range(0, len(samples), step)
        for read in [samples.read(start, min(start + step, len(samples)))]
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
