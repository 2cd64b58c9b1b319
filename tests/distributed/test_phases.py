"""A profiled run and a dry run: what they tell, and that they change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import losses, own_rank, run_small, same_checkpoint, small_config

from capsdist.config import Config, problems
from capsdist.train.display import Display
from capsdist.train.dry_run import dry_run
from capsdist.train.phases import PHASES, PhaseMeter


def profiled(config: Config, folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Run `config`; return the rows, and the files that are kept."""
    kept: dict[str, bytes] = {}
    return run_small(config, folder, keep=kept.__setitem__), kept


def phases_of(config: Config, stop_at: int | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Do a dry run on this rank; return its end row and the events."""
    rank, world_size = own_rank()
    rows: list[dict[str, Any]] = []
    end = dry_run(
        config,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        events=rows.append,
        should_stop=lambda step: step == stop_at,
    )
    return end, rows


def test_a_profiled_run_writes_a_trace_of_so_many_steps_and_has_the_same_losses(
    shapes: Path, tmp_path: Path
) -> None:
    rows, kept = profiled(small_config(shapes, max_steps=8, profile=2), tmp_path / "profiled")
    events = json.loads(kept.pop("profile/rank-0.json"))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert kept == {}
    assert sorted(name for name in names if name.startswith("ProfilerStep")) == [
        "ProfilerStep#3",
        "ProfilerStep#4",
    ]
    assert {name: names.count(name) for name in PHASES[1:]} == dict.fromkeys(PHASES[1:], 2)
    assert any(event["name"].startswith("aten::") for event in events)
    plain = run_small(small_config(shapes, max_steps=8), tmp_path / "plain")
    assert losses(rows) == losses(plain)
    assert same_checkpoint(tmp_path / "profiled/step-0008", tmp_path / "plain/step-0008")


def test_a_run_that_ends_before_keeps_what_was_traced(shapes: Path, tmp_path: Path) -> None:
    _, kept = profiled(small_config(shapes, max_steps=5, profile=100), tmp_path / "some")
    assert b"ProfilerStep#4" in kept["profile/rank-0.json"]
    _, kept = profiled(small_config(shapes, max_steps=2, profile=100), tmp_path / "none")
    assert kept == {}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_dry_run_tells_time_and_memory_of_each_phase(world_size: int, shapes: Path, on_ranks: Any) -> None:
    end, (start, row) = on_ranks(
        world_size, phases_of, small_config(shapes, max_steps=6, gradient_accumulation_steps=2)
    )
    assert (start["kind"], start["world_size"], start["total_steps"]) == ("start", world_size, 6)
    assert (row["kind"], row["step"], row["num_steps"]) == ("phases", 6, 5)
    assert list(row["seconds"]) == list(row["peak_bytes"]) == list(PHASES)
    assert all(0 < seconds < 10 for seconds in row["seconds"].values())
    assert all(10e6 < number < 10e9 for number in row["peak_bytes"].values())
    # 26 images in steps of 8, 8, 8 and 2: the first step is not timed
    per_second = (8 + 8 + 2 + 8 + 8) / (5 * sum(row["seconds"].values()))
    assert row["images_per_s"] == pytest.approx(per_second)
    assert (end["kind"], end["step"], end["stopped"], end["error_percent"]) == ("end", 6, False, None)
    json.dumps([start, row, end])


def test_a_dry_run_of_one_step_is_timed_and_a_stop_ends_one(shapes: Path) -> None:
    _, rows = phases_of(small_config(shapes, max_steps=1))
    assert rows[-1]["num_steps"] == 1
    assert sum(rows[-1]["seconds"].values()) > 0
    end, rows = phases_of(small_config(shapes, max_steps=6), stop_at=3)
    assert (end["step"], end["stopped"], rows[-1]["num_steps"]) == (3, True, 2)


def test_the_peak_of_a_phase_is_its_own() -> None:
    meter = PhaseMeter(torch.device("cpu"))
    meter("forward")
    held = torch.ones(64 << 20)  # 256 MiB
    del held
    meter("backward")
    meter("")
    _, peaks = meter.most(1)
    if Path("/proc/self/clear_refs").exists():
        assert peaks["forward"] - peaks["backward"] > 200 << 20


def test_a_dry_run_is_shown_as_a_table(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, rows = phases_of(small_config(shapes, max_steps=2))
    with Display(plain=True) as display:
        for row in rows:
            display(row)
    lines = capsys.readouterr().out.splitlines()[-7:]
    assert [line.split()[0] for line in lines[:-1]] == ["phase", *PHASES, "step"]
    assert all("MiB" in line for line in lines[1:-1])
    assert lines[-1].endswith("images/s over 1 step; of each figure the most of any worker")


def test_a_dry_run_keeps_no_trace(shapes: Path) -> None:
    [problem] = problems(small_config(shapes, profile=2, dry_run=3))
    assert str(problem) == (
        "train.profile=2: would leave no trace behind with train.dry_run=3; set one of them"
    )
