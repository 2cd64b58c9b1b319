"""Rules for the section `optim` across fields, and against the length of the run."""

from __future__ import annotations

from collections.abc import Iterator

from capsdist.config.schema import Config, Optim
from capsdist.config.steps import total_steps
from capsdist.errors import ConfigError, Problem

__all__ = ["check_schedule", "optim_problems", "schedule_problem", "schedule_steps"]

_ADAMS = ("beta1", "beta2", "epsilon", "epsilon_placement")
_SGDS = ("momentum", "nesterov")
_WITH_AN_END = ("cosine", "one_cycle")


def optim_problems(config: Config) -> Iterator[Problem]:
    """Return every problem of the section `optim` that its fields show."""
    optim = config.optim
    yield from _kind_problems(optim)
    yield from _schedule_problems(optim)
    ends = (steps for steps in (optim.schedule_steps, config.train.max_steps) if steps is not None)
    if (end := min(ends, default=None)) is not None and (problem := _long_warmup(optim, end)):
        yield problem


def schedule_steps(config: Config, num_samples: int) -> int | None:
    """Return the step at which the schedule of the learning rate ends, None if it has no end.

    num_samples: of the training images.
    """
    if config.optim.schedule not in _WITH_AN_END:
        return None
    return config.optim.schedule_steps or total_steps(config, num_samples)


def check_schedule(config: Config, num_samples: int) -> None:
    """Check that a run on `num_samples` training images is longer than its warm-up.

    Raises:
        ConfigError: it is not.
    """
    if problem := schedule_problem(config, num_samples):
        raise ConfigError([problem])


def schedule_problem(config: Config, num_samples: int) -> Problem | None:
    """Return what a run on `num_samples` training images has against its warm-up, None if nothing."""
    if config.train.dry_run:  # a few steps of a longer run
        return None
    return _long_warmup(config.optim, total_steps(config, num_samples))


def _long_warmup(optim: Optim, end: int) -> Problem | None:
    if optim.warmup_steps == 0 or optim.warmup_steps < end:
        return None
    rule = f"must be below the {end} steps of the run or schedule"
    return Problem("optim.warmup_steps", optim.warmup_steps, rule, "warm up for fewer steps")


def _kind_problems(optim: Optim) -> Iterator[Problem]:
    foreign = _ADAMS if optim.kind == "sgd" else _SGDS
    for name in foreign:
        value, default = getattr(optim, name), Optim.model_fields[name].default
        if value != default:
            others = "kinds adam and adamw" if optim.kind == "sgd" else "kind sgd"
            rule = f"is for {others}, and optim.kind is {optim.kind}"
            fix = f"set --optim.{name.replace('_', '-')} {default}, or another --optim.kind"
            if isinstance(default, bool):
                fix = f"set --optim.no-{name}, or --optim.kind sgd"
            yield Problem(f"optim.{name}", value, rule, fix)
    if optim.kind == "sgd" and optim.nesterov and optim.momentum == 0:
        rule = "needs momentum, and optim.momentum is 0"
        yield Problem("optim.nesterov", True, rule, "set --optim.momentum 0.9 or --optim.no-nesterov")
    if optim.kind == "adam" and optim.weight_decay > 0:
        rule = "would be divided by Adam's second moment like the gradient"
        yield Problem("optim.weight_decay", optim.weight_decay, rule, "set --optim.kind adamw")


def _schedule_problems(optim: Optim) -> Iterator[Problem]:
    name = optim.schedule
    if optim.schedule_steps is not None and name not in _WITH_AN_END:
        rule = f"is for cosine and one_cycle, and optim.schedule is {name}"
        yield Problem("optim.schedule_steps", optim.schedule_steps, rule, "leave it out")
    if name != "one_cycle" and optim.cycle_up != Optim.model_fields["cycle_up"].default:
        rule = f"is for one_cycle, and optim.schedule is {name}"
        yield Problem(
            "optim.cycle_up", optim.cycle_up, rule, "leave it out, or set --optim.schedule one_cycle"
        )
    if name == "one_cycle" and optim.warmup_steps > 0:
        rule = "does not go with optim.schedule=one_cycle, which rises by itself"
        yield Problem("optim.warmup_steps", optim.warmup_steps, rule, "leave it out and set --optim.cycle-up")
    if name in _WITH_AN_END and optim.learning_rate_floor >= optim.learning_rate > 0:
        rule = f"must be below optim.learning_rate={optim.learning_rate:g} for optim.schedule={name}"
        yield Problem(
            "optim.learning_rate_floor", optim.learning_rate_floor, rule, "set it to 0 or a lower rate"
        )
