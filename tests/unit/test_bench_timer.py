"""The timer counts what it says; no test depends on how fast anything is."""

from __future__ import annotations

import pytest

from capsdist.bench.timer import Timing, time_side_by_side


def test_candidates_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    times = time_side_by_side(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget_s=60, max_rounds=4
    )
    assert calls == ["a", "b"] * 5
    assert [len(timing.seconds) for timing in times.values()] == [4, 4]


def test_no_budget_leaves_the_smallest_number_of_rounds() -> None:
    times = time_side_by_side({"a": lambda: None}, budget_s=0, min_rounds=2)
    assert len(times["a"].seconds) == 2


@pytest.mark.parametrize(("percent", "expected"), [(1, 1.0), (10, 1.0), (50, 5.0), (90, 9.0), (100, 10.0)])
def test_percentiles_are_nearest_ranks(percent: float, expected: float) -> None:
    assert Timing(tuple(float(x) for x in range(10, 0, -1))).percentile_s(percent) == expected


def test_summary() -> None:
    assert Timing((3.0, 1.0, 2.0)).summary() == {
        "median_s": 2.0, "p10_s": 1.0, "p90_s": 3.0, "min_s": 1.0, "num_runs": 3,
    }  # fmt: skip
