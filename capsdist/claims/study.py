"""Train both networks with every seed and part of the images, and do all experiments with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from capsdist.bench.record import versions
from capsdist.claims.arranged import CROWDING, SCRAMBLED
from capsdist.claims.disturbed import FGSM, NOISE
from capsdist.claims.experiment import (
    BASELINE,
    CAPSNET,
    Claim,
    Experiment,
    Result,
    Values,
)
from capsdist.claims.matched import Size, size_of
from capsdist.claims.settings import Settings, Trained, configs_of, digits_preset
from capsdist.claims.subject import error_percent, open_subject, read_images
from capsdist.claims.subsets import pack_part
from capsdist.claims.transformed import EQUIVARIANCE, TRANSFORMATIONS
from capsdist.config import Config, get_preset
from capsdist.console import Log
from capsdist.data import read_index
from capsdist.errors import MissingDataError
from capsdist.launch import RunSummary, launch
from capsdist.runs.rundir import run_place
from capsdist.storage import join

__all__ = ["ON_DIGITS", "Study", "Train", "run_study"]

ON_DIGITS = (*TRANSFORMATIONS, SCRAMBLED, CROWDING, EQUIVARIANCE, NOISE, FGSM)
"""Experiments with test digits and the networks of the largest part of the training images."""

Train = Callable[[Config], RunSummary]
"""Trains what a configuration describes, or goes on with it; `capsdist.launch.launch` is one."""

_VIEWS = {"azimuth": "other azimuths", "elevation": "other elevations"}


@dataclass
class Study:
    """What was done and found: JSON-able but for `results`.

    settings: of the study; note: what a reader must know first, or ""; sizes: cost of both networks, by data
    set and name; runs: every trained network; results: of the experiments; not_run: why others were not done.
    """

    settings: Settings
    note: str = ""
    sizes: dict[str, dict[str, Size]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def sentences(self) -> list[str]:
        """Return what was found, and what was not run: a sentence each."""
        found = [each.sentence for result in self.results for each in result.findings]
        return found + [f"{name}: not run; {reason}." for name, reason in self.not_run.items()]

    def as_data(self) -> dict[str, Any]:
        """Return every number, as claims.json has them."""
        return {
            "note": self.note,
            "settings": vars(self.settings),
            "versions": versions(),
            "sizes": {
                data: {network: vars(size) for network, size in both.items()}
                for data, both in self.sizes.items()
            },
            "runs": self.runs,
            "experiments": {result.experiment.name: result.as_data() for result in self.results},
            "not_run": self.not_run,
        }


def run_study(settings: Settings, log: Log, *, note: str = "", train: Train = launch) -> Study | None:
    """Train what is missing, measure, and return the study; None if a signal stopped a run.

    The same settings go on where a study was stopped: runs that are done return at once.

    Raises:
        ConfigError: settings that are out of range, or do not fit the data.
        DataError: the digits are not packed. CapsdistError: what `train` raises.
    """
    settings = settings.checked()
    study = Study(settings, note)
    planned = _digit_runs(settings)
    errors = _trained(study, planned, train, log)
    if errors is None:
        return None
    study.results.append(_less_data(settings, planned, errors))
    largest = [each for each in planned if each.fraction == settings.fractions[-1]]
    study.results += _on_digits(settings, largest, log)
    for factor, words in _VIEWS.items():
        try:
            views = _view_runs(settings, factor)
        except MissingDataError:
            name = f"smallnorb_{factor}"
            study.not_run[f"viewpoints_{factor}"] = f"{name} is not packed (capsdist pack {name})"
            continue
        if _trained(study, views, train, log) is None:
            return None
        study.results.append(_viewpoints(settings, factor, words, views, log))
    return study


def _digit_runs(settings: Settings) -> list[Trained]:
    """Return the runs of both networks for every seed and part; the parts are packed."""
    base, found = digits_preset(settings), []
    total = read_index(join(settings.root, settings.data, "train")).num_samples
    whole = min(settings.images or total, total)
    steps = math.ceil(settings.epochs * whole / base.train.global_batch_size)
    for seed in settings.seeds:
        for fraction in settings.fractions:
            percent = fraction * whole / total
            split, num = pack_part(settings.root, settings.data, percent, seed)
            found += configs_of(settings, base, seed, fraction, split, num, steps)
    return found


def _view_runs(settings: Settings, factor: str) -> list[Trained]:
    """Return the runs on smallNORB's familiar views.

    Raises:
        MissingDataError: the set is not packed.
    """
    name = f"smallnorb_{factor}"
    place = join(settings.root, name, "train")
    num = read_index(place).num_samples
    base = get_preset(f"{name}_paper")
    steps = math.ceil(settings.epochs * num / base.train.global_batch_size)
    runs = [configs_of(settings, base, seed, 100, "train", num, steps) for seed in settings.seeds]
    return [each for both in runs for each in both]


def _trained(study: Study, planned: Sequence[Trained], train: Train, log: Log) -> list[float] | None:
    """Train the runs in turn and return their errors on the test split, in percent; None: one was stopped."""
    errors: list[float] = []
    for number, each in enumerate(planned):
        config = each.config
        log(f"run {number + 1} of {len(planned)}: {config.train.name}, {config.train.max_steps:,} steps")
        study.sizes.setdefault(config.data.name, {})[each.network] = size_of(config.model, config.routing)
        summary = train(config)
        if summary.status != "done" or summary.error_percent is None:
            return None
        errors.append(summary.error_percent)
        study.runs.append(
            {
                "name": summary.name,
                "network": each.network,
                "seed": each.seed,
                "fraction_percent": each.fraction,
                "train_split": config.data.train_split,
                "steps": summary.steps,
                "error_percent": summary.error_percent,
            }
        )
    return errors


def _less_data(settings: Settings, planned: Sequence[Trained], errors: Sequence[float]) -> Result:
    """Return the experiment of errors on the whole test split against the part of the training images."""
    found = {(run.network, run.seed, run.fraction): error for run, error in zip(planned, errors, strict=True)}
    measured = {
        network: [
            {"error_percent": [found[network, seed, fraction] for fraction in settings.fractions]}
            for seed in settings.seeds
        ]
        for network in (CAPSNET, BASELINE)
    }

    def claim(place: int, fraction: float) -> Claim:
        return Claim(
            f"With {fraction:g} % of the training images a capsule network errs less than a CNN",
            "error in percent",
            lambda values: values["error_percent"][place],
            "lower",
        )

    experiment = Experiment(
        "less_data",
        "Error against the number of training images",
        "part of the training images, percent",
        settings.fractions,
        {"error_percent": "error in percent"},
        tuple(claim(place, fraction) for place, fraction in enumerate(settings.fractions)),
    )
    return Result.of(experiment, measured)


def _on_digits(settings: Settings, runs: Sequence[Trained], log: Log) -> list[Result]:
    """Return the experiments with test digits, of every network in turn."""
    split = join(settings.root, settings.data, runs[0].config.data.test_split)
    images = read_images(runs[0].config, split, settings.test_images)
    rows: dict[str, dict[str, list[Values]]] = {each.name: {CAPSNET: [], BASELINE: []} for each in ON_DIGITS}
    for run in runs:
        subject = open_subject(run_place(run.config), log)
        for experiment in ON_DIGITS:
            assert experiment.measure is not None
            log(f"{experiment.name}: {run.config.train.name}, {len(images.labels):,} images")
            rows[experiment.name][run.network].append(experiment.measure(subject, images))
    return [Result.of(each, rows[each.name]) for each in ON_DIGITS]


def _viewpoints(settings: Settings, factor: str, words: str, runs: Sequence[Trained], log: Log) -> Result:
    """Return the experiment with test toys in the views of training, and in others."""
    measured: dict[str, list[Values]] = {CAPSNET: [], BASELINE: []}
    for run in runs:
        subject, data = open_subject(run_place(run.config), log), run.config.data
        log(f"viewpoints_{factor}: {run.config.train.name}")
        errors = [
            error_percent(subject, read_images(run.config, join(data.root, data.name, split)))
            for split in ("validation", data.test_split)
        ]
        measured[run.network].append({"error_percent": errors})

    def rise(values: Values) -> float:
        familiar, novel = values["error_percent"]
        return novel - familiar

    claims = (
        Claim(
            f"A capsule network reads toys from {words} than in training with fewer errors than a CNN",
            "error in percent", lambda values: values["error_percent"][1], "lower",
        ),
        Claim(
            f"The error of a capsule network rises less from familiar views to {words} than that of a CNN",
            "rise of the error in percent", rise, "lower",
        ),
    )  # fmt: skip
    experiment = Experiment(
        f"viewpoints_{factor}",
        f"smallNORB: test toys from {words} than in training",
        "views",
        ("familiar", "novel"),
        {"error_percent": "error in percent"},
        claims,
    )
    return Result.of(experiment, measured)
