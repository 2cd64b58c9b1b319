"""ASHA over several starts: what was decided stays decided, and the past counts for those that come later."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from capsdist.config import Config
from capsdist.runs.files import LocalFiles
from capsdist.tune.journal import FINISHED, STOPPED, Journal
from capsdist.tune.search import Halving, Plan, scheduler_of

TOTAL, GRACE = 32, 4
Report = tuple[int, int, float]


def reports_of(seed: int, num_trials: int = 12) -> list[Report]:
    """Reports of trials that come in any order, each trial's own in theirs: steps 4, 8, ..., 32."""
    rng = random.Random(seed)
    level = {number: rng.uniform(1, 50) for number in range(1, num_trials + 1)}
    turns = [number for number in level for _ in range(TOTAL // GRACE)]
    rng.shuffle(turns)
    steps = dict.fromkeys(level, 0)
    found = []
    for number in turns:
        steps[number] += GRACE
        found.append((number, steps[number], level[number] / steps[number] ** 0.5 + rng.uniform(0, 1)))
    return found


def decide(scheduler: Halving, reports: list[Report], known: set[int]) -> list[tuple[int, int]]:
    """Feed reports as Tune does, none of a trial after its stop; return (number, step) of each stop."""
    stops = []
    ended: set[int] = set()
    for number, step, error in reports:
        if number in ended:
            continue
        trial: Any = SimpleNamespace(config={"number": number})
        if number not in known:
            known.add(number)
            scheduler.on_trial_add(None, trial)
        if scheduler.on_trial_result(None, trial, {"step": step, "error_percent": error}) == "STOP":
            stops.append((number, step))
            ended.add(number)
            scheduler.on_trial_complete(None, trial, {"step": step, "error_percent": error})
    return stops


def new() -> Halving:
    return Halving(GRACE, 2, TOTAL)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8])
def test_a_search_that_was_killed_decides_like_the_undisturbed_one(seed, cut):
    reports = reports_of(seed)
    whole = decide(new(), reports, set())
    assert whole
    place = int(cut * len(reports))
    before = decide(new(), reports[:place], set())
    seen, ended = [], dict(before)
    for report in reports[:place]:
        if report[0] not in ended or report[1] <= ended[report[0]]:
            seen.append(report)
    again = new()
    assert again.replay(seen) == set(ended)
    left = [report for report in reports[place:] if report[0] not in ended]
    assert before + decide(again, left, {number for number, _, _ in seen}) == whole


def test_the_check_can_fail():
    """Without replay, as Tune restores a search, some that are stopped in the undisturbed search go on."""
    differs = 0
    for seed in range(4):
        reports = reports_of(seed)
        whole = decide(new(), reports, set())
        place = len(reports) // 2
        before = decide(new(), reports[:place], set())
        left = [report for report in reports[place:] if report[0] not in dict(before)]
        differs += before + decide(new(), left, set()) != whole
    assert differs


@pytest.mark.parametrize("seed", range(3))
def test_no_trial_is_stopped_at_its_last_step(seed):
    reports = [(number, TOTAL, random.Random(seed + number).uniform(1, 9)) for number in range(1, 20)]
    assert decide(new(), reports, set()) == []
    stops = decide(new(), [(number, GRACE, error) for number, _, error in reports], set())
    assert stops  # at an earlier one they are


def test_the_better_half_goes_on():
    reports = [(number, GRACE, float(number)) for number in range(1, 9)]
    assert decide(new(), reports, set()) == [(number, GRACE) for number in range(2, 9)]  # each worse than all
    assert decide(new(), reports[::-1], set()) == []  # each better than all


def plan(grace: int | None) -> Plan:
    return Plan(Config(), 9, 1, TOTAL, grace, 2)


def test_a_stop_that_was_decided_but_not_written_down_is_kept(journal, tmp_path):
    for number, error in ((1, 3.0), (2, 9.0), (3, 1.0)):
        journal.append("trial", number=number, values={})
        journal.append("report", number=number, step=GRACE, error_percent=error)
    journal.append("end", number=1, status=FINISHED, reason="")
    scheduler = scheduler_of(plan(GRACE), journal)
    assert isinstance(scheduler, Halving)
    assert [trial.status for trial in journal.history.trials.values()] == [FINISHED, STOPPED, "running"]
    assert Journal(LocalFiles(tmp_path)).history.trials[2].status == STOPPED


def test_without_a_milestone_nothing_is_stopped(journal):
    scheduler = scheduler_of(plan(None), journal)
    assert type(scheduler) is FIFOScheduler
    assert scheduler.on_trial_result(None, None, {"step": 4}) == TrialScheduler.CONTINUE  # type: ignore[arg-type]
