"""Runs that faults interrupt, on the way that users take, held against the run that nothing disturbs.

A run goes through `launch` in one Ray session, its faults strike in its workers, it recovers by itself
or is started again, and in the end its samples and its bits are counted. The undisturbed run is the loop on
two plain processes: what faults must not change is the training itself, not one road to it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from capsdist.config import Config
from capsdist.errors import CapsdistError
from capsdist.launch import launch
from capsdist.storage.temporary import temporary_folder
from capsdist.train.metrics import Row
from faults.lineage import (
    Attempt,
    Recorder,
    count_samples,
    differing_tensors,
    read_attempts,
    surviving,
)
from faults.script import Fault, Mark, Script, read_marks, send_by_value
from faults.tiny import (
    CAMPAIGN_EPOCHS,
    NUM_TRAIN,
    STEPS_PER_EPOCH,
    WORKERS,
    campaign_config,
    run_undisturbed,
    write_tiny,
)

_ENDING = ("stop", "driver", "shard_overwritten")
"""Kinds after which a run is started again."""

__all__ = ["Bench", "Verdict", "describe", "fault_figures", "open_bench", "passed", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """What became of a run: faults that struck, attempts by rank, samples, tensors that have other bits.

    finished: it came to its end.
    """

    marks: list[Mark]
    attempts: dict[int, list[Attempt]]
    lost: int
    doubled: int
    differing: list[str]
    finished: bool

    @property
    def diverged(self) -> bool:
        """Whether it is not the undisturbed run, to the last bit."""
        return not self.finished or bool(self.differing)


@dataclass(frozen=True)
class Bench:
    """A folder with data, runs, and what they leave; `references`: undisturbed last checkpoints by engine."""

    folder: Path
    references: Mapping[str, Callable[[], Path]]

    def run(self, name: str, faults: Sequence[Fault], log: Callable[[str], None]) -> Verdict:
        """Train the run `name` with `faults` to its end, started again as often as it is stopped."""
        engine = _engine(faults)
        config = campaign_config(
            self.folder / "data", self.folder / "runs", name, max_failures=len(faults), engine=engine
        )
        recordings, marks = (self.folder / kind / name for kind in ("recordings", "marks"))
        start = _Start(config, tuple(faults), recordings, marks, log)
        alone = any(fault.kind == "driver" for fault in faults)
        finished = False
        for _ in range(1 + sum(fault.kind in _ENDING for fault in faults)):
            if finished := start.elsewhere() if alone else start():
                break
        newest = max((self.folder / "runs" / name).glob("step_*"))
        return verdict(recordings, marks, newest, self.references[engine](), finished=finished)


def _engine(faults: Sequence[Fault]) -> str:
    """Return which engine a run with these faults trains with."""
    return "zero" if any(fault.kind == "killed_build" for fault in faults) else "ddp"


@contextmanager
def open_bench(engines: Collection[str] = ("ddp",)) -> Iterator[Bench]:
    """Make a bench and begin the undisturbed runs; call it before Ray starts in this process."""
    with temporary_folder() as folder:
        write_tiny(folder / "data")
        references = {}
        for engine in sorted(engines):
            name = f"undisturbed-{engine}"
            config = campaign_config(folder / "data", folder / "runs", name, engine=engine)
            references[engine] = run_undisturbed(config, Recorder(folder / "recordings" / name))
        yield Bench(folder, references)


def verdict(recordings: Path, marks: Path, newest: Path, reference: Path, *, finished: bool) -> Verdict:
    """Judge a run by what its workers have written down and by its newest checkpoint."""
    attempts = read_attempts(recordings)
    lost, doubled = count_samples(
        [surviving(each) for each in attempts.values()],
        num_samples=NUM_TRAIN,
        steps_per_epoch=STEPS_PER_EPOCH,
        epochs=CAMPAIGN_EPOCHS,
    )
    return Verdict(read_marks(marks), attempts, lost, doubled, differing_tensors(newest, reference), finished)


def fault_figures(scripts: Sequence[Sequence[Fault]], log: Callable[[str], None]) -> dict[str, object]:
    """Run every script as a run of its own in one Ray session, and return what they add up to.

    Returns:
        faults_injected: faults that struck, by their own marks; by_kind: the same by kind.
        samples_lost, samples_doubled: over all runs and epochs, see `count_samples`.
        runs_diverged: runs that did not end, or with other weights or optimizer state.
        num_runs, num_attempts: runs, and worker groups that trained in them. wall_s: seconds, Ray included.
    """
    began = time.monotonic()
    os.environ["RAY_ADDRESS"] = "local"
    with open_bench({_engine(script) for script in scripts}) as bench:
        # Nothing is built there yet; the undisturbed runs, which have begun, build where users do.
        os.environ["TORCH_EXTENSIONS_DIR"] = str(bench.folder / "extensions")
        from capsdist.launch.preflight import Machine
        from capsdist.launch.session import prepare_ray, ray_session

        prepare_ray()
        config = campaign_config(bench.folder, bench.folder, "session")
        with ray_session(config, Machine(WORKERS, 0)):
            verdicts = []
            for number, script in enumerate(scripts):
                verdicts.append(bench.run(f"run-{number}", script, log))
                log(describe(verdicts[-1]))
    return {
        "faults_injected": sum(len(each.marks) for each in verdicts),
        "samples_lost": sum(each.lost for each in verdicts),
        "samples_doubled": sum(each.doubled for each in verdicts),
        "runs_diverged": sum(each.diverged for each in verdicts),
        "by_kind": _by_kind(verdicts),
        "num_runs": len(verdicts),
        "num_attempts": sum(len(each.attempts[0]) for each in verdicts),
        "wall_s": round(time.monotonic() - began, 1),
    }


def passed(figures: Mapping[str, object], num_faults: int) -> bool:
    """Return whether all faults of the scripts have struck and none has cost anything."""
    costs = ("samples_lost", "samples_doubled", "runs_diverged")
    return figures["faults_injected"] == num_faults and not any(figures[name] for name in costs)


def describe(found: Verdict) -> str:
    """Return a verdict as lines for people."""
    lines = [
        f"  {mark.fault.kind} of rank {mark.fault.rank} at step {mark.fault.step}" for mark in found.marks
    ]
    steps = ", ".join(str(each.resumed_step) for each in found.attempts[0])
    end = "diverged: " + ", ".join(found.differing or ["not finished"]) if found.diverged else "equal"
    return "\n".join(
        [*lines, f"  went on from steps {steps}; lost {found.lost}, doubled {found.doubled}, {end}"]
    )


def _by_kind(verdicts: Sequence[Verdict]) -> dict[str, int]:
    kinds = [mark.fault.kind for each in verdicts for mark in each.marks]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


@dataclass(frozen=True)
class _Start:
    """One start of a run, in this process or in one of its own, which may be killed."""

    config: Config
    faults: tuple[Fault, ...]
    recordings: Path
    marks: Path
    log: Callable[[str], None]

    def __call__(self) -> bool:
        """Launch; return whether the run is done."""
        train = self.config.train
        send_by_value()
        data = self.config.data
        split = Path(data.root, data.name, data.train_split)
        script = Script(self.faults, self.marks, Path(train.storage, train.name), split)
        script.before_start()
        try:
            summary = launch(
                self.config, display=self._show, fault=script, observer=Recorder(self.recordings)
            )
        except CapsdistError as error:
            self.log(f"  {error}")
            return False
        return summary.status == "done"

    def elsewhere(self) -> bool:
        """Launch from a process of its own, which joins the Ray of this one."""
        import ray

        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        process = get_context("spawn").Process(target=_exit_status, args=(replace(self, log=print),))
        process.start()
        os.environ["RAY_ADDRESS"] = "local"
        process.join()
        if process.exitcode == -signal.SIGKILL:
            self.log("  the driver was killed")
        return process.exitcode == 0

    def _show(self, row: Row) -> None:
        match row["kind"]:
            case "start":
                self.log(f"  training from step {row['resumed_step']}")
            case "failure" | "note":
                self.log(f"  {row['message']}")


def _exit_status(start: _Start) -> None:
    raise SystemExit(0 if start() else 1)
