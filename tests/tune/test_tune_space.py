"""Spaces: which points they have, in which order, and what is refused of a search's options."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest

from capsdist.config import (
    BaselineCNNConfig,
    CapsNetConfig,
    Config,
    Loss,
    Routing,
    Train,
    get_preset,
    problems,
    with_values,
)
from capsdist.tune.space import (
    FIELDS,
    Search,
    Space,
    chosen,
    points,
    rounded,
    search_problems,
)
from kinds_of_presets import OF_CAPSULES

GRID = Space(iterations=(1, 2, 3), none_of_the_above=(False, True), class_dim=(3, 5, 7, 9))
RANGE = Space(iterations=(1, 3), learning_rate_range=(2e-4, 5e-3))


def first(space: Space, num: int, seed: int = 0) -> list[dict[str, Any]]:
    return list(itertools.islice(points(space, seed), num))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_finite_space_gives_every_point_once(seed):
    found = [tuple(point.values()) for point in points(GRID, seed)]
    assert len(found) == len(set(found)) == 3 * 2 * 4
    assert set(found) == set(itertools.product(GRID.iterations, GRID.none_of_the_above, GRID.class_dim))


@pytest.mark.parametrize("space", [GRID, RANGE])
def test_the_order_is_the_seeds_and_only_the_seeds(space):
    assert first(space, 20, seed=5) == first(space, 20, seed=5)
    assert first(space, 20, seed=5) != first(space, 20, seed=6)
    assert first(space, 9, seed=5) == first(space, 20, seed=5)[:9]  # more trials go on where fewer ended


@pytest.mark.parametrize("seed", range(3))
def test_a_range_is_drawn_inside_itself_and_evenly_in_the_logarithm(seed):
    low, high = RANGE.learning_rate_range or (0, 0)
    rates = [point["optim.learning_rate"] for point in first(RANGE, 300, seed)]
    assert all(low <= rate <= high for rate in rates)
    below = sum(rate < (low * high) ** 0.5 for rate in rates) / len(rates)
    assert 0.35 < below < 0.65
    assert sum(rate < (low + high) / 2 for rate in rates) / len(rates) > 0.65  # evenly in the rate: one half


def test_a_narrow_range_comes_to_an_end():
    found = list(points(Space(learning_rate_range=(0.001, 0.00102)), seed=0))
    assert sorted(point["optim.learning_rate"] for point in found) == [0.001, 0.00101, 0.00102]


@pytest.mark.parametrize(
    ("rate", "low", "high", "expected"),
    [(0.00123456, 1e-4, 1e-2, 0.00123), (0.0033341, 0.0033339, 1, 0.0033339), (0.9996, 0.1, 0.9997, 0.9997)],
)
def test_rates_have_three_digits_but_stay_in_range(rate, low, high, expected):
    assert rounded(rate, low, high) == expected


@pytest.mark.parametrize("preset", OF_CAPSULES)
def test_without_options_all_dimensions_are_searched_around_the_preset(preset):
    config = get_preset(preset)
    space = chosen(Space(), config)
    assert search_problems(config, space, Search()) == []
    point = first(space, 1)[0]
    absent = set() if config.model.decoder else {"loss.reconstruction_weight"}
    methods = {FIELDS["algorithm"], FIELDS["competition"]}  # only where they are given
    assert set(point) == set(FIELDS.values()) - absent - methods
    assert all(problems(with_values(config, point)) == [] for point in first(space, 50))
    assert config.model.class_dim in space.class_dim
    assert config.model.primary_types in space.primary_types


def test_given_dimensions_are_the_only_ones():
    assert chosen(GRID, Config()) == GRID
    assert set(first(GRID, 1)[0]) == {"routing.iterations", "routing.none_of_the_above", "model.class_dim"}


def test_values_are_laid_over_a_configuration():
    base = get_preset("digits_quickstart")
    config = with_values(base, {"routing.iterations": 5, "model.class_dim": 7, "model.primary_types": 9})
    assert config.routing == Routing(iterations=5)
    assert config.model == CapsNetConfig(class_dim=7, primary_types=9)
    assert (config.train, config.data, config.preset) == (base.train, base.data, base.preset)


@pytest.mark.parametrize("name", FIELDS)
def test_every_dimension_sets_a_field(name):
    section, field = FIELDS[name].split(".")
    assert field in type(getattr(get_preset("digits_conv"), section)).model_fields


def test_other_families_have_the_dimensions_that_they_know():
    fields = set(next(points(chosen(Space(), get_preset("digits_em")), 0)))
    assert fields == {"routing.iterations", "model.primary_types", "optim.learning_rate"}
    attention = chosen(Space(), get_preset("digits_attention"))  # which reads neither of these
    assert (attention.iterations, attention.none_of_the_above) == ((3,), (False,))
    given = Space(algorithm=("dynamic", "inverted"), competition=("field", "position"), iterations=(1,))
    assert search_problems(get_preset("digits_conv"), given, Search()) == []
    point = next(points(given, 0))
    assert with_values(get_preset("digits_conv"), point).routing.algorithm == point["routing.algorithm"]


REFUSED = [
    ({}, {"scheduler": "pbt"}, {}, "search.scheduler='pbt'", "trials that are Ray Train runs do not have"),
    ({}, {"scheduler": "pb2"}, {}, "search.scheduler='pb2'", "set --search.scheduler asha"),
    ({}, {"trials": 0}, {}, "search.trials=0", "at least 1"),
    ({}, {"concurrency": 0}, {}, "search.concurrency=0", "at least 1"),
    ({}, {"grace_steps": 0}, {}, "search.grace_steps=0", "at least 1"),
    ({}, {"reduction": 1}, {}, "search.reduction=1", "at least 2"),
    ({}, {"max_parameters": 0}, {}, "search.max_parameters=0", "at least 1"),
    ({}, {"seed": -1}, {}, "search.seed=-1", "at least 0"),
    ({}, {"worker_memory_gib": 0.0}, {}, "search.worker_memory_gib=0.0", "greater than 0"),
    ({"class_dim": (4, 4)}, {}, {}, "space.class_dim=(4, 4)", "twice"),
    ({"class_dim": (-1, 8)}, {}, {}, "space.class_dim=-1", "take it out of --space.class-dim"),
    ({"iterations": (0, 3)}, {}, {}, "space.iterations=0", "must be at least 1"),
    ({"learning_rate": (0.0,)}, {}, {}, "space.learning_rate=0.0", "greater than 0"),
    ({"learning_rate_range": (0.1, 0.01)}, {}, {}, "space.learning_rate_range=(0.1, 0.01)", "lowest < high"),
    ({"learning_rate_range": (0.0, 0.01)}, {}, {}, "space.learning_rate_range=(0.0, 0.01)", "0 < lowest"),
    (
        {"learning_rate_range": (0.1, 0.2), "learning_rate": (0.1,)}, {}, {},
        "space.learning_rate_range=(0.1, 0.2)", "does not go with space.learning_rate",
    ),
    ({}, {}, {"model": BaselineCNNConfig()}, "model.kind='baseline_cnn'", "no routing"),
    (
        {"competition": ("field", "position")}, {}, {}, "space.competition=('field', 'position')",
        "sets routing.competition, which networks of model.kind=capsnet do not have",
    ),
    ({"algorithm": ("dynamic", "capsuleball")}, {}, {}, "space.algorithm='capsuleball'", "take it out of"),
    ({}, {}, {"train": Train(dry_run=2)}, "train.dry_run=2", "is for a run, not for a search"),
    (
        {"reconstruction_weight": (0.0, 0.1)}, {}, {"model": CapsNetConfig(decoder=False)},
        "space.reconstruction_weight=(0.0, 0.1)", "no effect without model.decoder",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("space", "search", "config", "field", "words"), REFUSED)
def test_every_problem_names_field_value_and_remedy(space, search, config, field, words):
    (problem,) = search_problems(Config(**config), Space(**space), Search(**search))
    assert str(problem).startswith(f"{field}: ")
    assert words in str(problem)
    assert len(str(problem).splitlines()) == 1


def test_all_problems_come_at_once():
    search = Search(trials=0, scheduler="pb2", reduction=0)
    assert len(search_problems(Config(loss=Loss()), Space(iterations=(1, 1)), search)) == 4


def test_options_are_read_without_torch_and_ray():
    code = (
        "import capsdist.tune.space, sys; print({'torch', 'ray', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
