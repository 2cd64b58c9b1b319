"""The space of a search: typed options, and all their problems at once. Imports no torch, no Ray.

A point of the space is a mapping of dotted configuration fields to values, so that it can be laid over
any configuration, stored as JSON, and printed as options of a command.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from capsdist.config import Config, Section, problems, with_values
from capsdist.config.rules import section_problems
from capsdist.config.sections import Bounds, Count, OptionalCount
from capsdist.data.sets.spec import VALIDATION
from capsdist.errors import Problem
from capsdist.launch.preflight import packing_remedy

__all__ = [
    "CELL", "FIELDS", "RATE", "Search", "Space", "Values", "checked_values", "chosen", "has_routing",
    "points", "rounded", "search_problems", "validation_problem",
]  # fmt: skip

Values = Mapping[str, int | float | bool | str]
"""A point: value by dotted field of the configuration, in the order of `FIELDS`."""

FIELDS = {
    "iterations": "routing.iterations",
    "none_of_the_above": "routing.none_of_the_above",
    "algorithm": "routing.algorithm",
    "competition": "routing.competition",
    "primary_types": "model.primary_types",
    "primary_dim": "model.primary_dim",
    "class_dim": "model.class_dim",
    "learning_rate": "optim.learning_rate",
    "reconstruction_weight": "loss.reconstruction_weight",
}
"""Dimensions of the space, and the configuration field that each of them sets."""
RATE = FIELDS["learning_rate"]
CELL = "cell"
"""Stands in place of fields in the point of a trial that is a cell of a grid: the cell's name."""

_MAX_REPEATS = 1000  # draws without a new point, after which a narrow range counts as used up


class Space(Section):
    """Values to search over: only dimensions that are given; if none is, all, around the preset's values."""

    iterations: tuple[int, ...] = ()
    """Routing iterations, e.g. 1 2 3 5."""
    none_of_the_above: tuple[bool, ...] = ()
    """The extra choice of routing: True False."""
    algorithm: tuple[str, ...] = ()
    """Routing algorithms of the class capsules, e.g. dynamic attention inverted."""
    competition: tuple[str, ...] = ()
    """Who shares a child of convolutional or matrix capsules: field position."""
    primary_types: tuple[int, ...] = ()
    """Types of primary capsules."""
    primary_dim: tuple[int, ...] = ()
    """Dimensions of a primary capsule."""
    class_dim: tuple[int, ...] = ()
    """Dimensions of a class capsule."""
    learning_rate: tuple[float, ...] = ()
    """Learning rates at the first step."""
    learning_rate_range: tuple[float, float] | None = None
    """Lowest and highest learning rate: drawn between them, evenly in the logarithm, to 3 digits."""
    reconstruction_weight: tuple[float, ...] = ()
    """Weights of the reconstruction loss; 0 switches it off."""


class Search(Section):
    """How to search."""

    trials: Count = 16
    """Trials, at most; a search that is done can be started again with more."""
    concurrency: OptionalCount = None
    """Trials at a time, each with train.num_workers workers; default: as many as cores or GPUs allow."""
    searcher: Literal["random", "optuna"] = "random"
    """random: distinct points in random order; optuna: its TPE sampler learns from ended trials."""
    scheduler: Literal["asha", "none", "pbt", "pb2"] = "asha"
    """asha: stops trials early that are worse than others at the same step; none: all run to their end."""
    grace_steps: OptionalCount = None
    """Training steps before ASHA's first decision; default: one epoch."""
    reduction: Annotated[int, Bounds(ge=2)] = 2
    """ASHA keeps one in so many trials at each decision, and decides again after so many times the steps."""
    max_parameters: OptionalCount = None
    """Refuse networks with more trainable parameters, without spending a trial."""
    worker_memory_gib: Annotated[float | None, Bounds(gt=0)] = None
    """Refuse networks that take more memory per worker, in GiB; default: this machine's, shared out."""
    seed: Annotated[int, Bounds(ge=0)] = 0
    """Seed of the order of points."""
    record: bool = False
    """Write a record below jobs/records when the search is done."""


def has_routing(config: Config) -> bool:
    """Say whether the network has routing iterations, without which there is nothing to search over."""
    return _has(config, FIELDS["iterations"])


def chosen(space: Space, config: Config) -> Space:
    """Return `space`, or if nothing is given in it, all dimensions around what `config` has.

    But algorithms and competition, which are other methods, are searched over only where they are given.
    """
    if space != Space() or not has_routing(config):
        return space  # `search_problems` refuses a family that does not route
    model, rate = config.model, config.optim.learning_rate
    around: dict[str, tuple[Any, ...]] = {"iterations": (1, 2, 3, 5), "none_of_the_above": (False, True)}
    for name, factors in (("primary_types", (1, 2, 4)), ("primary_dim", (2, 4)), ("class_dim", (2, 4, 8))):
        size = getattr(model, name, 0)
        around[name] = _distinct(*(size * factor // 4 for factor in factors))
    weight = getattr(config.loss, "reconstruction_weight", 0.0)
    around["reconstruction_weight"] = tuple(sorted({0.0, weight, 10 * weight}))
    allowed = {name: _allowed(config, FIELDS[name], values) for name, values in around.items()}
    return Space(learning_rate_range=(rate / 3, rate * 3), **allowed)


def _has(config: Config, field: str) -> bool:
    """Say whether the network has a field; the decoder's only where there is one."""
    section, _, name = field.partition(".")
    if field == FIELDS["reconstruction_weight"] and not getattr(config.model, "decoder", False):
        return False
    return name in type(getattr(config, section)).model_fields


def _allowed(config: Config, field: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values that a field may have here; none of a field that is not there."""
    if not _has(config, field):
        return ()
    refused = [value for value, _ in _problems_of(config, field, values)]
    return tuple(value for value in values if value not in refused)


def _problems_of(config: Config, field: str, values: Iterable[Any]) -> Iterator[tuple[Any, Problem]]:
    """Yield each value of one field that is wrong, and why, the other fields being those of `config`.

    Also of fields that it does not go with: groups of capsule types, say, that do not divide their number.
    """
    before = {found.field for found in problems(config)}
    for value in values:
        for found in problems(with_values(config, {field: value})):
            if (found.field, found.value) == (field, value) or found.field not in before:
                yield value, found


def _distinct(*sizes: int) -> tuple[int, ...]:
    return tuple(sorted({max(size, 1) for size in sizes}))


def points(space: Space, seed: int) -> Iterator[dict[str, int | float | bool | str]]:
    """Yield distinct points of `space` in random order: all of a finite space; a range has no end of them.

    A function of (space, seed) alone, so that a search started again meets the same points.
    """
    rng = random.Random(seed)
    values = {field: list(getattr(space, name)) for name, field in FIELDS.items() if getattr(space, name)}
    if space.learning_rate_range is None:
        grid = list(itertools.product(*values.values()))
        rng.shuffle(grid)
        for combination in grid:
            yield dict(zip(values, combination, strict=True))
        return
    low, high = space.learning_rate_range
    seen: set[tuple[object, ...]] = set()
    repeats = 0
    while repeats < _MAX_REPEATS:
        drawn = {field: rng.choice(choices) for field, choices in values.items()}
        drawn[RATE] = rounded(math.exp(rng.uniform(math.log(low), math.log(high))), low, high)
        point = {field: drawn[field] for field in FIELDS.values() if field in drawn}
        repeats += 1
        if (key := tuple(point.values())) not in seen:
            seen.add(key)
            repeats = 0
            yield point


def rounded(rate: float, low: float, high: float) -> float:
    """Return `rate` with 3 digits, which commands and tables can show whole, within its range."""
    return min(max(float(f"{rate:.3g}"), low), high)


def checked_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` if they are a point of some space, or name a cell.

    Raises:
        ValueError: a field is not searched over, or its value is of another type.
    """
    if values.keys() == {CELL} and isinstance(values[CELL], str):
        return values
    kinds = {FIELDS[name]: get_args(Space.model_fields[name].annotation)[0] for name in FIELDS}
    for field, value in values.items():
        if field not in kinds:
            raise ValueError(f"{field} is not a dimension of a search")
        if type(value) is not kinds[field] and not (kinds[field] is float and type(value) is int):
            raise ValueError(f"{field}={value!r} is of another type")
        if not isinstance(value, str) and value < 0:
            raise ValueError(f"{field}={value!r} is below 0")
    return values


def search_problems(config: Config, space: Space, search: Search) -> list[Problem]:
    """Return every problem of a search's own options; those of `config` are found by `capsdist.config`."""
    return [
        *_scheduler_problems(search),
        *section_problems("search", search),
        *_space_problems(config, space),
        *_config_problems(config),
    ]


def validation_problem(config: Config) -> Problem | None:
    """Return why trials around `config` cannot be compared, None if they can."""
    if not config.data.splits:
        rule = "leaves a search without a validation error to compare trials by"
        fix = "set --data.name to a packed set that has data.validation_split"
        return Problem("data.name", config.data.name, rule, fix)
    if config.data.validation_split is not None:
        return None
    fix = f"{packing_remedy(config, VALIDATION)}, then set --data.validation-split {VALIDATION}"
    rule = "has no validation, and a search compares the errors of validations"
    return Problem("data.validation_split", None, rule, fix)


def _scheduler_problems(search: Search) -> Iterator[Problem]:
    if search.scheduler in ("pbt", "pb2"):
        rule = (
            "copies Tune checkpoints, which trials that are Ray Train runs do not have: it would do nothing"
        )
        yield Problem("search.scheduler", search.scheduler, rule, "set --search.scheduler asha")


def _space_problems(config: Config, space: Space) -> Iterator[Problem]:
    for name, field in FIELDS.items():
        values = getattr(space, name)
        if len(set(values)) < len(values):
            yield Problem(f"space.{name}", values, "names a value twice", "name each once")
        option = f"--space.{name.replace('_', '-')}"
        if values and not _has(config, field):
            yield _not_there(config, name, values)
            continue
        for value, found in _problems_of(config, field, values):
            yield Problem(f"space.{name}", value, found.rule, f"take it out of {option}")
    if (bounds := space.learning_rate_range) is None:
        return
    if not 0 < bounds[0] < bounds[1] < math.inf:
        fix = "e.g. 0.0003 0.003"
        yield Problem("space.learning_rate_range", bounds, "must be 0 < lowest < highest", fix)
    if space.learning_rate:
        rule = "does not go with space.learning_rate"
        yield Problem("space.learning_rate_range", bounds, rule, "give values or a range")


def _not_there(config: Config, name: str, values: tuple[Any, ...]) -> Problem:
    if name == "reconstruction_weight" and hasattr(config.model, "decoder"):
        return Problem(
            f"space.{name}", values, "has no effect without model.decoder",
            "set --model.decoder, or search without it",
        )  # fmt: skip
    rule = f"sets {FIELDS[name]}, which networks of model.kind={config.model.kind} do not have"
    return Problem(f"space.{name}", values, rule, "leave it out")


def _config_problems(config: Config) -> Iterator[Problem]:
    if not has_routing(config):
        fix = "set --model.kind to a network of capsules, e.g. capsnet"
        yield Problem("model.kind", config.model.kind, "has no routing to search over", fix)
    if config.train.dry_run:
        yield Problem("train.dry_run", config.train.dry_run, "is for a run, not for a search", "leave it out")
