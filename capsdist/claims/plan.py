"""Plan a study: the runs of both networks, which are the cells of one grid. Writes and starts nothing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from capsdist.claims.matched import Size, size_of
from capsdist.claims.settings import Settings, Trained, configs_of
from capsdist.claims.subsets import Part, part_of
from capsdist.claims.trained import VIEWS
from capsdist.config import Config, get_preset, with_values
from capsdist.console import command_line
from capsdist.data import read_index
from capsdist.errors import ConfigError, MissingDataError, Problem
from capsdist.launch.preflight import absolute, packing_remedy
from capsdist.storage import join

__all__ = ["Plan", "planned"]


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    settings: checked ones; digits: runs on the digits; views: runs on the familiar views of smallNORB, by
    factor; parts: of the training images, to write before the runs start; not_run: why experiments are left
    out, by name.
    """

    settings: Settings
    digits: list[Trained]
    views: dict[str, list[Trained]]
    parts: list[Part]
    not_run: dict[str, str]

    @property
    def runs(self) -> list[Trained]:
        """Return all runs."""
        return self.digits + [each for runs in self.views.values() for each in runs]

    @property
    def cells(self) -> dict[str, Config]:
        """Return the configurations of all runs, as cells of a grid."""
        return {each.name: each.config for each in self.runs}

    @property
    def cells_of_whole(self) -> dict[str, Config]:
        """Return the cells with whole training splits: parts are not there before they are written."""
        whole = {"data.train_split": "train"}
        return {name: with_values(config, whole) for name, config in self.cells.items()}

    @property
    def largest(self) -> list[Trained]:
        """Return the runs on the largest part of the digits, whose networks serve all experiments."""
        return [each for each in self.digits if each.fraction == self.settings.fractions[-1]]

    @property
    def grid(self) -> Config:
        """Return the configuration of the grid: its folder, and the workers of every cell."""
        return with_values(self.digits[0].config, {"train.name": self.settings.name})

    @property
    def sizes(self) -> dict[str, dict[str, Size]]:
        """Return what both networks cost, by data set and network."""
        found: dict[str, dict[str, Size]] = {}
        for each in self.runs:
            both = found.setdefault(each.config.data.name, {})
            if each.network not in both:
                both[each.network] = size_of(each.config.model, each.config.routing)
        return found

    @property
    def summary(self) -> str:
        """Return what it takes to train all runs, and a line for each experiment that is left out."""
        steps, sizes = Counter(each.steps for each in self.runs), self.sizes
        words = " and ".join(f"{num} runs of {each:,} steps" for each, num in sorted(steps.items()))
        flop = sum(
            each.steps
            * each.config.train.global_batch_size
            * sizes[each.config.data.name][each.network].training_flop
            for each in self.runs
        )
        first = f"study {self.settings.name}: {words}; {flop:.2g} FLOP in all"
        return "\n".join([first, *(f"{name}: not run: {why}" for name, why in self.not_run.items())])


def planned(settings: Settings) -> Plan:
    """Return the plan of a study.

    Raises:
        ConfigError: settings are out of range, or no baseline is as large as the network.
        DataError: the digits are not packed.
    """
    settings = settings.checked()
    digits, parts = _digits(settings)
    views, not_run = {}, {}
    for factor in VIEWS:
        preset = get_preset(f"smallnorb_{factor}_paper")
        base = with_values(preset, {"data.root": settings.root})
        try:
            views[factor] = _views(settings, base)
        except MissingDataError:
            not_run[f"viewpoints_{factor}"] = f"no data ({command_line(f'pack {base.data.name}')})"
    return Plan(settings, digits, views, parts, not_run)


def _digits(settings: Settings) -> tuple[list[Trained], list[Part]]:
    """Return the runs of both networks for every seed and part, and the parts."""
    values = {"data.name": settings.data, "data.root": settings.root}
    base = absolute(with_values(get_preset("mnist_paper"), values))
    place, splits = join(settings.root, settings.data), ("train", "test")
    train, _ = (read_index(join(place, split), remedy=packing_remedy(base, split)) for split in splits)
    whole = settings.images or train.num_samples
    if whole > train.num_samples:
        rule = f"is more than the {train.num_samples:,} training images of {settings.data}"
        raise ConfigError(
            [Problem("images", whole, rule, "set --images to at most as many, or leave it out")]
        )
    steps = math.ceil(settings.epochs * whole / base.train.global_batch_size)
    runs, parts = [], []
    for seed in settings.seeds:
        for fraction in settings.fractions:
            part = part_of(place, fraction * whole / train.num_samples, seed)
            runs += configs_of(settings, base, seed, fraction, part.name, part.num_images, steps)
            parts.append(part)
    return runs, parts


def _views(settings: Settings, base: Config) -> list[Trained]:
    """Return the runs of both networks for every seed on smallNORB's familiar views.

    Raises:
        MissingDataError: the set is not packed. DataError: a split of it is missing.
    """
    data = base.data
    indexes = [read_index(join(data.root, data.name, split)) for split in data.splits.values()]
    num = indexes[0].num_samples
    steps = math.ceil(settings.epochs * num / base.train.global_batch_size)
    runs = [configs_of(settings, base, seed, 100, data.train_split, num, steps) for seed in settings.seeds]
    return [each for both in runs for each in both]
