"""The scaling study: fits, intervals, aims, pictures; and real arms of it, tiny. No figure is judged."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from capsdist.bench.scaling_aims import SCALING_ROWS
from capsdist.bench.scaling_fit import fit_power
from capsdist.bench.scaling_overhead import Blocks, bare_process, overheads, stopped
from capsdist.bench.scaling_plots import save_plots
from capsdist.bench.scaling_shapes import STUDIES, Point, Study, fits, measure_points
from capsdist.bench.scaling_workers import Scaling, training_config, worker_figures, worker_numbers
from capsdist.bench.tables import goals_table


def test_a_power_is_found_with_the_error_that_least_squares_has() -> None:
    rng = np.random.default_rng()
    sizes = np.geomspace(3, 4_000, 12)
    exponent, factor = rng.uniform(-1, 2), rng.uniform(0.1, 10)
    exact = fit_power(sizes.tolist(), (factor * sizes**exponent).tolist())
    assert (exact.exponent, exact.factor) == pytest.approx((exponent, factor))
    assert exact.error == pytest.approx(0, abs=1e-9)
    noisy = factor * sizes**exponent * np.exp(rng.normal(0, 0.1, 12))
    (slope, offset), covariance = np.polyfit(np.log(sizes), np.log(noisy), 1, cov=True)
    found = fit_power(sizes.tolist(), noisy.tolist())
    assert (found.exponent, found.error) == pytest.approx((slope, covariance[0, 0] ** 0.5))
    assert found(7.0) == pytest.approx(np.exp(offset + slope * np.log(7.0)))


@pytest.mark.parametrize(("sizes", "values"), [([1, 2], [1, 0]), ([2, 2], [1, 2]), ([3], [4])])
def test_a_fit_that_makes_no_sense_is_refused(sizes: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match="a fit needs two sizes"):
        fit_power(sizes, values)


def test_a_block_is_compared_with_its_two_neighbours() -> None:
    assert overheads([3.0, 1.0], [1.0, 2.0, 2.0]) == pytest.approx([100.0, -50.0])


def test_goals_are_judged_by_their_aims() -> None:
    figures = {"loop_overhead_upper_percent": 5.5, "zero3_memory_ratio": 0.44, "weak_scaling_efficiency": 0.1}
    table = {line.split()[0]: line.split()[-1] for line in goals_table(SCALING_ROWS, figures).splitlines()}
    assert table["loop_overhead_upper_percent"] == "missed"
    assert table["zero3_memory_ratio"] == "reached"
    assert table["planner_flop_error_percent"] == "run"  # not run
    assert "weak_scaling_efficiency" not in table


def test_every_study_covers_its_range_with_half_of_its_points() -> None:
    for study in STUDIES.values():
        chosen = study.chosen(goals=True)
        assert (chosen[0], chosen[-1]) == (study.values[0], study.values[-1])


@pytest.mark.parametrize(("cores", "numbers"), [(1, [2]), (2, [2]), (3, [2]), (4, [2, 4]), (13, [2, 4, 8])])
def test_workers_are_powers_of_two(cores: int, numbers: list[int]) -> None:
    assert worker_numbers(cores) == numbers


def test_points_have_fits_and_pictures(tmp_path: Path) -> None:
    lines: list[str] = []
    study = Study("children", "num_children", (9, 70), {"num_images": 3, "num_parents": 2, "iterations": 2})
    points = measure_points(study, goals=False, log=lines.append)
    assert [point.value for point in points] == [9, 70]
    assert points[0].working_bytes < points[1].working_bytes
    assert len(lines) == 2
    steady = [Point("network", size, 1e-3 * size, None, 5e6 * size**2) for size in (1, 10, 100)]
    found = fits("pixels", steady)
    assert found["total_memory_exponent_pixels"].exponent == pytest.approx(2)
    assert "memory_exponent_pixels" not in found
    for picture in save_plots(tmp_path, {"children": points, "pixels": steady}):
        assert picture.stat().st_size > 10_000


def test_workers_are_measured_in_turns() -> None:
    lines: list[str] = []
    scaling = Scaling(num_images=16, steps=1, rounds=1)
    figures = worker_figures(scaling, 2, lines.append)
    positive = {"weak_scaling_efficiency", "strong_scaling_efficiency", "independent_processes_efficiency"}
    assert all(figures[name] > 0 for name in positive)
    assert figures["weak_waiting_share"] < 1
    assert lines[0].startswith("2 workers: ")


def test_blocks_of_a_run_and_of_a_bare_process_take_turns(tmp_path: Path) -> None:
    address, times = str(tmp_path / "bare"), tmp_path / "times.json"
    with bare_process(training_config(tmp_path, "mnist_paper", 2), address, 1, 1) as bare:
        blocks = pickle.loads(
            pickle.dumps(Blocks(address, str(times), 2, os.getpid(), bare))
        )  # as to a worker
        for step in range(6):
            blocks(0, step, torch.empty(0))
    found = json.loads(times.read_text())
    assert {name: len(seconds) for name, seconds in found.items()} == {"run": 2, "bare": 3, "background": 3}
    assert found["background"] == sorted(found["background"])
    assert len(overheads(found["run"], found["bare"])) == 2


def test_all_descendants_but_one_are_stopped_for_a_while() -> None:
    sleepers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    try:
        states = [psutil.Process(sleeper.pid).status for sleeper in sleepers]
        with stopped(os.getpid(), sleepers[1].pid) as found:
            pids = {process.pid for process in found}
            assert pids & {sleeper.pid for sleeper in sleepers} == {sleepers[0].pid}
            until = time.monotonic() + 60  # a process stops when it is scheduled
            while states[0]() != psutil.STATUS_STOPPED and time.monotonic() < until:
                time.sleep(0.01)
            assert states[0]() == psutil.STATUS_STOPPED
            assert states[1]() != psutil.STATUS_STOPPED
        assert states[0]() != psutil.STATUS_STOPPED
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
