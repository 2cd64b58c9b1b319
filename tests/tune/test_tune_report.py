"""What a search found: the best trial, the Pareto front, the table, the figure, and the command."""

from __future__ import annotations

import io
import json
import random
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from capsdist.cli import parse_command
from capsdist.config import PRESETS, Config, get_preset, with_values
from capsdist.errors import RunError
from capsdist.models.counts import num_parameters
from capsdist.runs.files import open_files
from capsdist.storage.documents import dump_json, parse_document, seal
from capsdist.tune.figure import draw_search, save_figure
from capsdist.tune.folder import SearchFolder
from capsdist.tune.journal import FAILED, FINISHED, OUT_OF_MEMORY, STOPPED, Journal
from capsdist.tune.progress import SearchDisplay
from capsdist.tune.report import (
    SearchResult,
    TrialRow,
    best_row,
    pareto,
    sum_up,
    table,
)
from capsdist.tune.space import Space, points
from kinds_of_presets import OF_CAPSULES, VARIED


def row(
    name: str, error: float | None, speed: float | None, *, status: str = FINISHED, size: int = 9
) -> TrialRow:
    return TrialRow(name, {"routing.iterations": 3}, status, "", 8, error, speed, size)


ROWS = [
    row("slow", 1.0, 10.0), row("good", 1.0, 20.0), row("fast", 3.0, 50.0), row("bad", 3.5, 30.0),
    row("middle", 2.0, 30.0), row("small", 1.0, 15.0, size=3), row("cut", 0.5, 99.0, status=STOPPED),
    row("dead", None, None, status=FAILED),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_front_holds_what_nothing_beats(seed):
    rows = random.Random(seed).sample(ROWS, len(ROWS))
    assert [each.name for each in pareto(rows)] == ["fast", "middle", "good"]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_of_random_trials_is_that_of_its_definition(seed):
    rng = random.Random(seed)
    rows = [row(f"t{i}", float(rng.randrange(9)), float(rng.randrange(9)), size=i) for i in range(40)]
    points_of = {(each.error_percent, each.images_per_s) for each in rows}
    unbeaten = {
        (error, speed)
        for error, speed in points_of
        if not any(e <= error and s >= speed and (e, s) != (error, speed) for e, s in points_of)
    }
    front = pareto(rows)
    assert {(each.error_percent, each.images_per_s) for each in front} == unbeaten
    assert len(front) == len(unbeaten)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_is_finished_and_of_equal_errors_the_fastest_then_the_smallest(seed):
    tied = row("good and small", 1.0, 20.0, size=2)
    names = ["good and small", "good", "small", "slow"]
    rows = random.Random(seed).sample([*ROWS, tied], len(ROWS) + 1)
    for name in names:
        best = best_row(rows)
        assert best is not None
        assert best.name == name
        rows.remove(best)
    assert best_row([each for each in ROWS if each.status != FINISHED]) is None


def searched(config: Config, journal: Journal, folder: Path) -> SearchResult:
    """The result of a search with a trial of every fate."""
    fates = [(FINISHED, "", 16, 4.5), (STOPPED, "", 8, 30.25), (FAILED, "worker 0: it broke", 8, 60.0),
             (OUT_OF_MEMORY, "worker 0: OutOfMemoryError", 0, None), (FINISHED, "", 16, 7.0)]  # fmt: skip
    space = Space(iterations=(1, 3), none_of_the_above=(False, True), class_dim=(4, 6))
    journal.append("attempt")
    for number, (fate, values) in enumerate(zip(fates, points(space, seed=1), strict=False), 1):
        status, reason, step, error = fate
        journal.append("trial", number=number, values=values)
        if error is not None:
            journal.append("report", number=number, step=step, error_percent=error)
        journal.append("end", number=number, status=status, reason=reason)
        run = folder / "trials" / f"trial-{number:02d}"
        run.mkdir(parents=True)
        speeds = [{"kind": "train", "step": n, "images_per_s": 100.0 * number + n} for n in (1, 2, 30)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in speeds))
    journal.append("infeasible", values={"model.class_dim": 99}, reason="9 parameters")
    return sum_up(config, journal.history, open_files(folder), 16, 8)


@pytest.fixture
def result(config: Config, journal: Journal, tmp_path: Path) -> SearchResult:
    return searched(config, journal, tmp_path / "search")


def test_a_result_holds_every_trial_and_what_it_cost(result, config):
    assert [each.status for each in result.trials] == [FINISHED, STOPPED, FAILED, OUT_OF_MEMORY, FINISHED]
    assert [each.images_per_s for each in result.trials] == [102.0, 202.0, 302.0, 402.0, 502.0]
    for each in result.trials:
        assert each.num_parameters == num_parameters(with_values(config, each.values))
    assert (result.best, result.error_percent) == ("trial-01", 4.5)
    assert result.infeasible == [{"values": {"model.class_dim": 99}, "reason": "9 parameters"}]


def test_a_result_survives_json(result):
    assert parse_document(dump_json(seal(result.to_dict())), SearchResult) == result


def test_the_table_has_every_trial_and_says_what_became_of_it(result):
    lines = table(result)
    assert [line.split()[0] for line in lines[2:]] == [
        "trial-01", "trial-05", "trial-02", "trial-03", "trial-04", "trial-03", "trial-04", "infeasible:",
    ]  # fmt: skip
    assert lines[0].split()[:4] == ["trial", "iterations", "none_of_the_above", "class_dim"]
    assert "best" in lines[2]
    assert "Pareto" in lines[3]
    assert lines[5].endswith("  failed")
    assert lines[6].endswith("  out of memory")
    assert lines[7:9] == [
        "trial-03 failed: worker 0: it broke",
        "trial-04 out of memory: worker 0: OutOfMemoryError",
    ]
    assert lines[9] == "infeasible: class_dim 99: 9 parameters"


def test_a_long_reason_widens_no_table(result):
    trials = [replace(each, reason=each.reason * 99) for each in result.trials]
    lines = table(replace(result, trials=trials))
    assert [len(line) for line in lines[:7]] == [len(line) for line in table(result)[:7]]
    assert max(map(len, lines)) < 300


def test_many_infeasible_points_are_counted(result):
    many = [{"values": {"model.class_dim": n}, "reason": "no"} for n in range(1200)]
    lines = table(replace(result, infeasible=many))
    assert lines[-1] == "infeasible: 1,192 more, all in result.json"


def test_a_search_without_a_finished_trial_is_a_failure(config, journal, tmp_path):
    journal.append("trial", number=1, values={})
    journal.append("end", number=1, status=FAILED, reason="loss=nan")
    with pytest.raises(
        RunError, match=r"search 'tune-tiny': none of 1 trials finished; trial-01 failed: loss=nan"
    ):
        sum_up(config, journal.history, open_files(tmp_path), 16, 8)


ODD: list[dict[str, Any]] = [
    {"model": {"decoder": False, "decoder_hidden": (3, 4), "padding": "same"}},
    {"data": {"contrast": (0.25, 1.75), "flip": True, "standardise": True}},
    {"train": {"validate_every_steps": 5, "precision": "bf16"}, "launch": {"max_workers": 4}},
    {"optim": {"learning_rate": 1.5e-07, "epsilon": 1e-30}},
]


@pytest.mark.parametrize("sections", ODD)
@pytest.mark.parametrize("preset", [*(name for name in VARIED if name in OF_CAPSULES), "custom"])
def test_the_command_trains_the_best_trial(preset, sections, journal, tmp_path):
    base = get_preset(preset) if preset in PRESETS else Config()
    place = tmp_path / "a folder"
    sections = {**sections, "train": {**sections.get("train", {}), "storage": str(place), "name": "seen"}}
    update = {name: getattr(base, name).model_copy(update=values) for name, values in sections.items()}
    config = base.model_copy(update=update)
    result = searched(config, journal, place / "seen")
    SearchFolder(config).write_result(result)
    words = shlex.split(result.command)
    assert words[-2:] == ["--config", str(place / "seen" / "best.yaml")]
    best = with_values(config, result.trials[0].values)
    train = best.train.model_copy(update={"name": "seen-best"})
    found, _ = parse_command(None, list(PRESETS), None, words[-2:])
    assert found == best.model_copy(update={"train": train})


def test_the_figure_has_three_panels_with_every_trial_that_has_an_error(result):
    figure = draw_search(result)
    left, middle, right = figure.axes
    assert [axes.get_title("left") for axes in (left, middle, right)] == [
        "Error against routing depth", "Error against capacity", "Error against speed",
    ]  # fmt: skip
    for axes in (left, middle, right):
        assert sum(len(each.get_offsets()) for each in axes.collections) == 4
    assert [line.get_label() for line in right.lines] == ["Pareto front"]
    assert len(right.lines[0].get_xdata()) == 2


@pytest.mark.parametrize("errors", [(0.0, 7.0), (0.0, 0.0)])
def test_a_trial_without_any_error_stands_at_a_tick_that_says_0(result, errors):
    trials = [replace(each, error_percent=0.0) if each.error_percent else each for each in result.trials]
    trials[-1] = replace(trials[-1], error_percent=errors[1])
    left = draw_search(replace(result, trials=trials)).axes[0]
    labels = {text.get_text(): text.get_position()[1] for text in left.get_yticklabels()}
    heights = {float(place[1]) for each in left.collections for place in each.get_offsets()}
    assert heights == {labels["0"], *(error for error in errors if error)}
    assert left.get_yticks(minor=True).size == 0


def test_the_figure_is_saved_in_the_folder(result):
    path = save_figure(result, open_files(Path(result.folder)))
    assert path == str(Path(result.folder, "search.png"))
    assert imread(path).shape[1] == 1540


@pytest.mark.parametrize("plain", [True, False])
def test_the_outcome_ends_with_command_and_error(result, plain):
    out = io.StringIO()
    SearchDisplay(out, plain=plain).result(result, "runs/x/search.png")
    lines = out.getvalue().splitlines()
    assert lines[-2] == result.command
    assert lines[-1] == (
        "error_percent 4.50  (trial-01, the best of 2 finished of 5 trials, search tune-tiny)"
    )
    assert "plots: runs/x/search.png" in lines
