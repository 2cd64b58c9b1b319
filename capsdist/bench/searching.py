"""Benchmark a search that is killed once and continued: what it keeps, and how long it takes.

What is checked is read from the files of the search and of its trials' runs, as anybody could, not with
the code that wrote them. It is killed as by a power cut: the driver and every process of its Ray.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from capsdist.config import get_preset
from capsdist.errors import DocumentError, RunError
from capsdist.models.counts import num_parameters
from capsdist.storage.documents import parse_document, parse_lines, read_file
from capsdist.storage.temporary import temporary_folder
from capsdist.train.metrics import METRICS_NAME, read_metrics

__all__ = ["PRESET", "SMALL", "SPACE", "Files", "kept", "kill_tree", "killed_search", "own_environment"]

PRESET = "digits_quickstart"
SPACE = ["--space.iterations", "1", "2", "3", "5", "--space.class-dim", "8", "16", "32", "512"]
SMALL = ["--model.conv-channels", "64", "--model.primary-types", "16"]
"""A network of 29 % of the preset's parameters or more, by class dimension, and a seventh of its products."""
_NAME = "killed"
_GOES_ON_S = 2.0  # after a report without an end, ASHA has let the trial go on
_POLL_S = 0.1

Event = Mapping[str, Any]
Starts = Mapping[int, Sequence[int]]


def killed_search(
    job: Path, pack: Path, *, small: bool, num_trials: int, kill_after: int, limit_s: float
) -> tuple[dict[str, Any], str]:
    """Search over `SPACE` on digits, kill it, start it again; return figures, and what was printed.

    Args:
        job: jobs/tune_routing.py.
        pack: data_prep/pack_digits.py.
        small: search with `SMALL`, else with the preset's own network.
        num_trials: trials of the search, two workers each, one at a time.
        kill_after: trials that have ended when it is killed; another one is under way, with a checkpoint.
        limit_s: of the whole, in seconds.

    Raises:
        RunError: a start failed, ended before it could be killed, or the limit is over.
    """
    with temporary_folder() as place:  # a short path: Ray's sockets lie below it
        env = own_environment(place)
        subprocess.run([sys.executable, str(pack)], cwd=place, env=env, check=True, capture_output=True)
        most = num_parameters(get_preset(PRESET))
        command = [
            sys.executable, str(job), "--preset", PRESET, *(SMALL if small else []), *SPACE,
            "--search.trials", str(num_trials), "--search.max-parameters", str(most),
            "--train.name", _NAME, "--train.num-workers", "2", "--train.keep-checkpoints", "1",
        ]  # fmt: skip
        files = Files(place / "runs" / _NAME)
        began = time.monotonic()
        until = began + limit_s
        printed = [_start(command, place, until, lambda: _in_the_middle(files, kill_after))]
        killed_s = time.monotonic() - began
        before, starts = files.events(), files.starts()
        printed.append(_start(command, place, until, None))
        figures = {
            "whole_s": round(time.monotonic() - began, 1),
            "killed_after_s": round(killed_s, 1),
            **kept(before, files.events(), starts, files.starts()),
            **_found(files, most),
        }
        journal = (files.folder / "journal.jsonl").read_text()
        return figures, "\nkilled; the same command again:\n".join(printed) + "\n" + journal


class Files:
    """What a search has written into `folder` so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the journal; a line that is being written is not one yet.

        Raises:
            RunError: a line is damaged.
        """

        def damaged(number: int, error: DocumentError) -> None:
            raise RunError(f"{path}, line {number} {error}; measure again")

        path = self.folder / "journal.jsonl"
        try:
            return parse_lines(read_file(path), dict[str, Any], damaged)
        except FileNotFoundError:
            return []

    def result(self) -> dict[str, Any]:
        """Return what the search found.

        Raises:
            RunError: it is damaged.
        """
        path = self.folder / "result.json"
        try:
            return parse_document(read_file(path), dict[str, Any])
        except DocumentError as error:
            raise RunError(f"{path} {error}; measure again") from None

    def starts(self) -> dict[int, list[int]]:
        """Return from which step each start of each trial's run went on, by the trial's number."""
        return {
            int(path.parent.name.rpartition("-")[2]): [
                row["resumed_step"] for row in read_metrics(path) if row["kind"] == "start"
            ]
            for path in self.folder.glob(f"trials/trial-*/{METRICS_NAME}")
        }


def kept(
    before: Sequence[Event], after: Sequence[Event], starts_before: Starts, starts_after: Starts
) -> dict[str, Any]:
    """Return what a search kept of what it knew when it was killed: events and starts of runs, then and now.

    trials_lost: had ended and are not known any more as they ended; trials_run_again: had ended, and their
    runs were started again or they report anew; under_way: trials at the kill, with the last step reported
    and the one from which their runs went on.
    """
    ends = {event["number"]: event for event in before if event["event"] == "end"}
    known = [event for event in after if event["event"] == "end"]
    new = {event.get("number") for event in after[len(before) :]}
    begun = [event["number"] for event in before if event["event"] == "trial"]
    steps = {event["number"]: event["step"] for event in before if event["event"] == "report"}
    again = [n for n in ends if n in new or starts_before.get(n) != starts_after.get(n)]
    return {
        "trials_lost": sum(end not in known for end in ends.values()),
        "trials_run_again": len(again),
        "ended_before_kill": len(ends),
        "under_way": [
            {"trial": n, "step": steps.get(n, 0), "resumed_step": (starts_after.get(n) or [0])[-1]}
            for n in begun
            if n not in ends
        ],
    }


def kill_tree(pid: int) -> None:
    """Kill the process `pid` and all that it started, the elder first, and wait until they are gone."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
        for each in tree:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(tree, timeout=10)


def _start(command: Sequence[str], place: Path, until: float, enough: Callable[[], bool] | None) -> str:
    """Run a start of the search to its end, or kill it when it is `enough`; return what it printed."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, cwd=place, env=own_environment(place), stdout=log, stderr=subprocess.STDOUT
        ) as driver,
    ):
        killed = False
        try:
            while driver.poll() is None and not killed and time.monotonic() < until:
                time.sleep(_POLL_S)
                killed = enough is not None and enough()
            ended = driver.poll()
        finally:
            kill_tree(driver.pid)
        log.seek(0)
        printed = log.read()
    if ended is None and not killed:
        raise RunError("the search did not end within its limit; measure on a machine with more cores")
    if ended or (enough and not killed):
        last = (printed.splitlines() or ["nothing was printed"])[-1]
        raise RunError(f"the search ended with status {ended} ({last}); try its command by itself")
    return printed


def own_environment(place: Path) -> dict[str, str]:
    """Return ours without what would lead to another Ray, data or storage."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CAPSDIST_"))}
    return {**env, "RAY_TMPDIR": str(place)}


def _in_the_middle(files: Files, num_ended: int) -> bool:
    """Whether so many trials have ended, and another goes on after a report, and so has a checkpoint."""
    events, then = files.events(), time.time() - _GOES_ON_S
    ended = {event["number"] for event in events if event["event"] == "end"}
    reports = [event for event in events if event["event"] == "report" and event["number"] not in ended]
    return len(ended) >= num_ended and any(event["time"] < then for event in reports)


def _found(files: Files, preset_size: int) -> dict[str, Any]:
    """Return what the search found, out of its result.json."""
    result = files.result()
    trials = result["trials"]
    sizes = [trial["num_parameters"] for trial in trials]
    best = next(trial for trial in trials if trial["name"] == result["best"])
    return {
        "num_trials": len(trials),
        "num_by_status": dict(Counter(trial["status"] for trial in trials)),
        "num_infeasible": len(result["infeasible"]),
        "share_of_preset_parameters": round(min(sizes) / preset_size, 3),
        "error_percent": result["error_percent"],
        "best": best["values"],
        "command": result["command"],
        "trials": trials,
    }
