"""Table 1 as a grid: its cells, and what becomes of their errors."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from scipy import stats

from capsdist.bench.paper_aims import TABLE_1
from capsdist.bench.tables import newest_records, results_table
from capsdist.cli.table1 import Table1, _record
from capsdist.config import get_preset, with_values
from capsdist.config.presets.mnist_ablation import ABLATIONS, DIFFERENCES
from capsdist.tune.cells import Cell, grid_problems, length_of
from capsdist.tune.journal import FAILED, FINISHED
from capsdist.tune.table1 import REFERENCE, TableCell, markdown, presets_of, rows_of, table_cells

BOTH = ("mnist", "multimnist")
# Of Table 1 of the paper: error in percent.
PRINTED = {
    "mnist": {"baseline": 0.39, "r1": 0.34, "r1-reconstruction": 0.29, "r3": 0.35, REFERENCE: 0.25},
    "multimnist": {"baseline": 8.1, "r1-reconstruction": 7.5, REFERENCE: 5.2},
}


def cells(columns=BOTH, ablations=False, num_seeds=1, **values: object) -> list[TableCell]:
    fields = {name.replace("__", "."): value for name, value in values.items()}
    bases = {name: with_values(get_preset(name), fields) for name in presets_of(columns, ablations)}
    return table_cells(bases, columns, num_seeds)


def test_all_rows_of_both_columns_with_each_seed():
    found = cells(num_seeds=2, train__seed=5)
    assert len({cell.name for cell in found}) == len(found) == 2 * 5 * 2
    for cell in found:
        assert cell.config.train.seed == cell.seed
        assert cell.seed in (5, 6)
        assert cell.config.data.name == cell.column
        if cell.row == "baseline":
            assert (
                cell.config.model.kind == {"mnist": "baseline_cnn", "multimnist": "pooling_cnn"}[cell.column]
            )
        else:
            assert cell.config.routing.iterations == int(cell.row[1])
            assert cell.config.model.decoder == cell.row.endswith("-reconstruction")


def test_the_figures_are_those_that_the_paper_prints():
    found = {column: {} for column in BOTH}
    for (column, row), figures in TABLE_1.items():
        if figures:
            found[column][row] = figures[0]
    assert found == PRINTED


def test_each_ablation_is_a_row_unless_it_is_no_other_training():
    rows = {cell.row for cell in cells(ablations=True)}
    assert set(ABLATIONS) <= rows
    rows = {cell.row for cell in cells(ablations=True, train__epochs=1, train__precision="fp32")}
    assert set(ABLATIONS) - rows == {"mnist_ablation_epochs", "mnist_ablation_precision"}
    assert {"epochs", "precision"} <= set(DIFFERENCES)
    assert not {cell.row for cell in cells(columns=["multimnist"], ablations=True)} & set(ABLATIONS)


def test_a_record_answers_only_the_rows_of_its_column_size_and_length(tmp_path):
    for values, what in (
        ({}, "whole"), ({"train__epochs": 1}, "1-epoch"), ({"train__max_steps": 300}, "300-steps"),
    ):  # fmt: skip
        table = cells(num_seeds=2, **values)
        outcomes = {cell.name: Cell(cell.name, "", FINISHED, "", 9, 4.25, None) for cell in table[1:]}
        rows = rows_of(table, outcomes | {table[0].name: Cell(table[0].name, "", FAILED, "no room")})
        mnist = [row for row in rows if row.column == "mnist"]
        _record(tmp_path, "mnist", Table1(seeds=2), table, mnist, "")
        assert f"table1-mnist-full-{what}" in newest_records(tmp_path)
        lines = [line for line in results_table(tmp_path).splitlines() if "4.25" in line]
        shown = [line.split("|")[1].strip() for line in lines]
        assert shown == [  # not of the baseline, one of whose trainings failed, nor of what was not trained
            f"Table 1, MNIST, {text}, whole training"
            for text in ("r=1", "r=1, reconstruction", "r=3", "r=3, reconstruction")
        ]
    assert length_of([cell.config for cell in (*cells(), *cells(train__epochs=2))]) == "cut"


def test_a_grid_without_cells_is_a_problem():
    [problem] = grid_problems({})
    assert str(problem) == "cells=0: is nothing to train; choose other columns, depths or remedies"


def test_rows_have_mean_deviation_and_the_paired_interval():
    rng = np.random.default_rng()
    table = cells(columns=["mnist"], num_seeds=4)
    errors = {cell.name: float(rng.uniform(0.2, 3)) for cell in table}
    outcomes = {
        name: Cell(name, "", FINISHED, "", 9, error, [error / 2, error * 2]) for name, error in errors.items()
    }
    broken = "mnist-r1-seed2"
    outcomes[broken] = Cell(broken, "", FAILED, "it broke")
    rows = {row.row: row for row in rows_of(table, outcomes)}
    reference = rows[REFERENCE]
    assert reference.minus_reference is None
    assert (reference.paper_percent, reference.paper_sd_percent) == (0.25, 0.005)
    assert reference.num_parameters == 8_215_568
    for name, row in rows.items():
        seeds = [0, 1, 3] if name == "r1" else [0, 1, 2, 3]
        assert row.seeds == seeds
        expected = [errors[f"mnist-{name}-seed{seed}"] for seed in seeds]
        assert row.error_percent == expected
        assert row.mean_percent == pytest.approx(np.mean(expected))
        assert row.sd_percent == pytest.approx(statistics.stdev(expected))
        if name == REFERENCE:
            continue
        differences = [a - errors[f"mnist-{REFERENCE}-seed{s}"] for a, s in zip(expected, seeds, strict=True)]
        interval = stats.ttest_1samp(differences, 0).confidence_interval()
        assert row.minus_reference == pytest.approx([np.mean(differences), interval.low, interval.high])
    assert rows["r1"].not_finished == {broken: "failed it broke"}


def test_one_seed_has_no_deviation_and_nothing_finished_no_mean():
    table = cells(columns=["multimnist"])
    outcomes = {cell.name: Cell(cell.name, "", "missing") for cell in table}
    one = "multimnist-r3-seed0"
    outcomes[one] = Cell(one, "", FINISHED, "", 9, 7.25, [6.5, 8.0])
    rows = {row.row: row for row in rows_of(table, outcomes)}
    assert (rows["r3"].mean_percent, rows["r3"].sd_percent, rows["r3"].minus_reference) == (7.25, None, None)
    assert (rows["baseline"].mean_percent, rows["baseline"].paper_percent) == (None, 8.1)
    lines = markdown(list(rows.values()), "a title").splitlines()
    assert lines[:3] == ["# a title", "", "## multimnist"]
    (line,) = [line for line in lines if line.startswith("| r3 |")]
    assert line.startswith("| r3 | no figure | 7.250 |  | 7.25 (6.50 to 8.00) |  | ")
    (line,) = [line for line in lines if line.startswith("| baseline |")]
    assert line.startswith("| baseline | 8.1 | not finished |")
    assert "multimnist-baseline-seed0: missing" in lines
