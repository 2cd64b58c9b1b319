"""Test whether two networks, or two methods, differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from capsdist.cli.evaluate import error_text
from capsdist.console import DONE, announced, log
from capsdist.errors import ConfigError, Problem
from capsdist.runs.files import open_files

if TYPE_CHECKING:
    from capsdist.analysis.comparison import PairedImages, PairedSeeds
    from capsdist.analysis.evaluation import StoredEvaluation

__all__ = ["compare"]


def compare(
    places: Annotated[tuple[str, ...], tyro.conf.Positional],
    against: tuple[str, ...] = (),
    split: str | None = None,
    best: bool = False,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    batch_size: int = 128,
    shifts: int = 0,
) -> int:
    """Test whether two networks differ on the same images, or two methods over several seeds.

    Two networks, `capsdist compare A B`: McNemar's exact test of the images that only one reads wrongly.
    Two methods, `capsdist compare A1 A2 A3 --against B1 B2 B3`: the mean difference of error_percent with its
    95 % interval by Student's t; runs of equal train.seed are a pair, and images are not pooled. A run whose
    evaluation.json is of the same checkpoint is not measured again, unless split, device or shifts is given.

    Args:
        places: Paths or s3:// URLs of runs, checkpoints, or stored evaluations (.json), which are read.
        against: The other method: as many of them.
        split: Path or s3:// URL of the split; default: the test split of each run.
        best: Of a run, the checkpoint with the lowest validated error_percent.
        device: auto: the GPU if there is one.
        batch_size: Images at a time.
        shifts: As of `capsdist evaluate`.
    """
    first, second = (places, against) if against else (places[:1], places[1:])
    if not first or len(first) != len(second):
        shown = " ".join((*places, "--against", *against) if against else places)
        fix = "give two, or equally many before and after --against"
        raise ConfigError([Problem("places", shown, f"are {len(first)} and {len(second)}", fix)])
    with announced(log, f"reading {first[0]}"):  # and importing torch, which takes seconds
        from capsdist.analysis.comparison import compare_images, compare_seeds
        from capsdist.analysis.evaluation import kept_evaluation, measure, read_evaluation

    def evaluated(place: str) -> StoredEvaluation:
        if _is_stored(place):
            return read_evaluation(place)
        as_kept = split is None and not shifts and device == "auto"
        if as_kept and (kept := kept_evaluation(place, best=best, log=log)):
            log(f"{place}: evaluation.json of {kept.written} is read; --device measures again")
            return kept
        options = {"best": best, "device": device, "batch_size": batch_size, "shifts": shifts}
        return measure([place], split, log=log, **options)

    for place in (*first, *second):  # before the first measurement, which takes a while
        _check_checkpoint(place, best)
    one, other = ([evaluated(place) for place in each] for each in (first, second))
    if len(one) == 1:
        _print_images(one[0], other[0], compare_images(one[0], other[0]))
    else:
        _print_seeds(compare_seeds(one, other))
    return DONE


def _is_stored(place: str) -> bool:
    return place.partition("?")[0].endswith(".json")


def _check_checkpoint(place: str, best: bool) -> None:
    """Refuse a place that holds no checkpoint; of an URL, that cannot be read.

    Raises:
        CheckpointError, RunError, DataError: as `opened_checkpoint`.
    """
    from capsdist.runs.checkpoints import opened_checkpoint

    if _is_stored(place):
        return
    files = open_files(place)
    if files.local is None:
        files.check_readable(thing="run or checkpoint")
        return
    with opened_checkpoint(place, lowest_error=best, log=log):
        pass


def _print_images(first: StoredEvaluation, second: StoredEvaluation, found: PairedImages) -> None:
    for each in (first, second):
        print(f"{each.checkpoints[0]}: {error_text(each)}")
    print(f"wrong: {found.both:,} in both, {found.only_first:,} only in the first, ", end="")
    print(f"{found.only_second:,} only in the second")
    print(f"p_value {found.p_value:.3g}  (McNemar's exact test, two-sided)")


def _print_seeds(found: PairedSeeds) -> None:
    for seed, first, second in zip(found.seeds, found.first, found.second, strict=True):
        print(f"  seed {seed}: error_percent {first:.2f} and {second:.2f}, difference {first - second:+.2f}")
    interval = f"95 % interval {found.low:+.2f} to {found.high:+.2f}, {len(found.seeds)} seeds"
    print(f"difference_percent {found.mean_difference:+.2f}  ({interval})")
