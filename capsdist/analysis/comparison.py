"""Compare two networks on the same images, or two methods over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capsdist.analysis.evaluation import StoredEvaluation
from capsdist.errors import DataError
from capsdist.statistics import mcnemar, paired_interval

__all__ = ["PairedImages", "PairedSeeds", "compare_images", "compare_seeds"]


@dataclass(frozen=True)
class PairedImages:
    """Images that two networks read wrongly: both, or one of them alone.

    p_value: of McNemar's exact test, two-sided, that both networks err equally often. It is about these two
    networks: what another seed would give it does not say.
    """

    both: int
    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class PairedSeeds:
    """Errors of two methods for the same seeds, in percent.

    mean_difference: of first - second, with the ends of its 95 % interval by Student's t over the seeds.
    """

    seeds: tuple[int, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]
    mean_difference: float
    low: float
    high: float


def compare_images(first: StoredEvaluation, second: StoredEvaluation) -> PairedImages:
    """Compare two evaluations image by image.

    Raises:
        DataError: they are of different images, or one has no predictions.
    """
    _check_same_images([first, second])
    if first.predictions is None or second.predictions is None:
        raise DataError(
            f"{first.split}: has {first.num_images:,} images, for which no predictions are stored; "
            "give --split with a part of them"
        )
    wrong, other = first.predictions.wrong(), second.predictions.wrong()
    both, only_first, only_second = (
        int(count.sum()) for count in (wrong & other, wrong & ~other, other & ~wrong)
    )
    return PairedImages(both, only_first, only_second, mcnemar(only_first, only_second))


def compare_seeds(first: Sequence[StoredEvaluation], second: Sequence[StoredEvaluation]) -> PairedSeeds:
    """Compare two methods, each trained with the same seeds; runs of equal `train.seed` are a pair.

    Raises:
        DataError: there are fewer than two pairs, seeds without a partner or named twice, an ensemble, or
            different images.
    """
    _check_same_images([*first, *second])
    errors = [_by_seed(each) for each in (first, second)]
    if errors[0].keys() != errors[1].keys() or len(errors[0]) < 2:
        seeds = " and ".join(str(sorted(each)) for each in errors)
        raise DataError(f"seeds {seeds}: give two or more runs of each method, trained with the same seeds")
    seeds = tuple(sorted(errors[0]))
    one, other = (tuple(each[seed] for seed in seeds) for each in errors)
    return PairedSeeds(seeds, one, other, *paired_interval(one, other))


def _by_seed(evaluations: Sequence[StoredEvaluation]) -> dict[int, float]:
    found: dict[int, float] = {}
    for each in evaluations:
        if len(each.seeds) > 1:
            raise DataError(f"{each.checkpoints[0]}: is one of an ensemble, which has no seed; give runs")
        if each.seeds[0] in found:
            raise DataError(
                f"{each.checkpoints[0]}: is the second run with train.seed {each.seeds[0]}; give one"
            )
        found[each.seeds[0]] = each.error_percent
    return found


def _check_same_images(evaluations: Sequence[StoredEvaluation]) -> None:
    first = evaluations[0]
    for each in evaluations[1:]:
        if each.split_digest != first.split_digest:
            raise DataError(
                f"{each.checkpoints[0]} was evaluated on {each.split}, {first.checkpoints[0]} on "
                f"{first.split}, which has other images; evaluate both on one split"
            )
