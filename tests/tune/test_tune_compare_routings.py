"""The comparison of routing algorithms: equal parameters, paired seeds, digits of one set alone."""

from __future__ import annotations

import numpy as np
import pytest

from capsdist.algorithms import BUILT_IN
from capsdist.bench.routing_aims import ROUTING_ROWS
from capsdist.config import get_preset, problems
from capsdist.models.counts import num_parameters
from capsdist.statistics import paired_interval
from capsdist.tune.cells import Cell
from capsdist.tune.compare_routings import REFERENCE, RoutingCell, markdown, routing_cells, rows_of
from capsdist.tune.journal import FAILED, FINISHED
from capsdist.tune.routing_measures import kept_bytes_per_image, without


@pytest.fixture(scope="module")
def cells() -> list[RoutingCell]:
    return routing_cells(get_preset("digits_quickstart"), 3)


def test_every_algorithm_and_em_routing_with_the_same_seeds(cells: list[RoutingCell]) -> None:
    rows = list(dict.fromkeys(cell.row for cell in cells))
    assert sorted(rows) == sorted([*BUILT_IN, "em"]) == sorted(row.figure for row in ROUTING_ROWS)
    assert [cell.seed for cell in cells] == [0, 1, 2] * len(rows)
    assert {(cell.config.data.train_split, cell.config.data.validation_split) for cell in cells} == {
        ("train", None)
    }
    assert [problem for cell in cells for problem in problems(cell.config)] == []


def test_networks_have_as_many_parameters_to_two_percent(cells: list[RoutingCell]) -> None:
    numbers = {cell.row: num_parameters(cell.config) for cell in cells}
    assert max(numbers.values()) <= 1_000_000
    for number in numbers.values():
        assert abs(number - numbers[REFERENCE]) < 0.02 * numbers[REFERENCE]


def test_rows_pair_the_seeds_that_finished(cells: list[RoutingCell]) -> None:
    errors = {REFERENCE: [5.0, 6.0, 7.0], "average": [4.5, 6.5, 6.0]}
    chosen = [cell for cell in cells if cell.row in errors]
    outcomes = {
        cell.name: Cell(cell.name, "", FINISHED, "", 250, errors[cell.row][cell.seed], [1.0, 2.0])
        for cell in chosen
    }
    outcomes["average-seed1"] = Cell("average-seed1", "", FAILED, "no memory")
    speeds = dict.fromkeys(outcomes, 100.0)
    rows = rows_of(chosen, outcomes, speeds, {"average-seed0": 3.0}, {REFERENCE: 10.0, "average": 8.0})
    reference, average = rows
    assert reference.minus_dynamic is None
    assert average.minus_dynamic == list(paired_interval([4.5, 6.0], [5.0, 7.0]))
    assert (average.seeds, average.mean_percent) == ([0, 2], 5.25)
    assert average.not_finished == [f"average-seed1: {FAILED} no memory"]
    assert average.mnist_error_percent == [3.0]
    lines = markdown(rows, "title").splitlines()
    assert lines[0] == "# title"
    assert "| average | 68,144 (+0.00 %) | 4.50, 6.00 | 1.00 to 2.00 | 5.25 | -0.75 (" in lines[-1]


def test_bytes_kept_are_those_of_the_whole_network(cells: list[RoutingCell]) -> None:
    configs = {cell.row: cell.config for cell in cells}
    kept = {row: kept_bytes_per_image(configs[row]) for row in ("dynamic", "average", "em")}
    assert kept["average"] < kept["dynamic"] < kept["em"]


def test_images_of_both_sets_are_left_out() -> None:
    draw = np.random.default_rng(3)
    images = draw.integers(0, 256, (6, 1, 4, 4), dtype=np.uint8)
    left, labels = without(images, np.arange(6), images[[4, 1]])
    assert labels.tolist() == [0, 2, 3, 5]
    assert (left == images[[0, 2, 3, 5]]).all()
