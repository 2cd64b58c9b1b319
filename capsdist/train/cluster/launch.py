"""Launch a run: check everything, start or join Ray, train on its workers, show what happens.

Ours, on Ray Train's own means: `TorchTrainer` restarts failed workers from the newest checkpoint and finds
it again when the same name is started again. `fit` blocks, so it runs in a thread; the main thread shows
rows and owns the signals.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from capsdist.config import Config, validate
from capsdist.errors import CapsdistError, RunError
from capsdist.train.cluster import preflight
from capsdist.train.cluster.failure import one_line, root_cause
from capsdist.train.cluster.preflight import Placement
from capsdist.train.cluster.rundir import RunFolder, RunSummary, total_steps
from capsdist.train.cluster.session import prepare_ray, ray_session
from capsdist.train.metrics import METRICS_NAME, Row, read_metrics

if TYPE_CHECKING:
    from capsdist.train.cluster.worker import Fault

__all__ = ["launch"]

Show = Callable[[Row], None]


def launch(config: Config, *, display: Show | None = None, fault: Fault | None = None) -> RunSummary:
    """Train what `config` describes and return the summary of the run, which also becomes its result.json.

    A name that exists already is continued from its newest checkpoint; a finished run returns at once.
    Joins the cluster that RAY_ADDRESS names, else starts Ray on this machine and ends it. Ctrl-C and SIGTERM
    (in the main thread) end the run with status "stopped". `display` gets every row of events (default:
    `Display`); `fault` makes workers fail on purpose.

    Raises:
        ConfigError: the configuration is invalid, does not fit this machine, or is not that of the run.
        DataError, CheckpointError, RunError: data, checkpoint, storage or engine cannot be used, or
            training failed; one line, with the remedy.

    Cost: 10 to 20 s before the first step, most of it the start of Ray and its processes.
    """
    if display is None:
        from capsdist.train.display import Display

        with Display() as show:
            return launch(config, display=show, fault=fault)
    started = time.monotonic()
    config = preflight.absolute(validate(config))
    run = RunFolder(Path(config.train.storage, config.train.name))
    num_samples = preflight.check_data(config).num_samples
    run.create()
    with run.lock():
        run.check_continues(config, num_samples)
        finished = run.read_result()
        if finished is not None and finished.steps == total_steps(config, num_samples):
            _show_again(run, display)
            return finished
        end = _train(config, run, display, fault)
    wall_s = time.monotonic() - started
    if end is None:
        return RunSummary(run.name, str(run.path), "stopped", run.steps_saved(), None, None, wall_s)
    figures = end["step"], end["error_percent"], end["images_per_s"]
    summary = RunSummary(run.name, str(run.path), "done", *figures, wall_s)
    run.write_result(summary)
    return summary


def _show_again(run: RunFolder, display: Show) -> None:
    """Show the last lines of a run that is done already."""
    display({"kind": "note", "message": f"run {run.name} is done already"})
    ends = [row for row in read_metrics(run.path / METRICS_NAME) if row["kind"] == "end"]
    for row in ends[-1:]:
        display(row)


def _train(config: Config, run: RunFolder, display: Show, fault: Fault | None) -> Row | None:
    """Start or join Ray and train; return the last row, None if a signal ended the run."""
    machine = preflight.this_machine() if prepare_ray() else None
    placement = None
    if machine is not None:
        placement = preflight.place_on_machine(config, machine)
        preflight.check_engine(config, placement)
        display({"kind": "status", "message": f"starting Ray on {machine.cores} cores"})
    with ray_session(config, machine) as resources:
        placement = placement or preflight.place_on_cluster(config, resources)
        note = f" ({placement.note})" if placement.note else ""
        display({"kind": "status", "message": f"starting {placement.workers} workers{note}"})
        run.write_config(config)
        return _fit(config, placement, run, display, fault)


def _fit(
    config: Config, placement: Placement, run: RunFolder, display: Show, fault: Fault | None
) -> Row | None:
    """Train; turn whatever Ray raises into one line, with the whole story in a file of the run."""
    import ray.exceptions
    import ray.train

    from capsdist.train.cluster.fit import fit

    try:
        return fit(config, placement, run.path, display, fault)
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        story = run.path / "failure.txt"
        story.write_text(f"{error}\n")
        rank, cause = root_cause(error)
        if isinstance(cause, CapsdistError):
            raise cause from None
        if type(cause).__name__ == "WorkerGroupStartupTimeoutError":
            raise RunError(_not_enough(config, placement)) from None
        raise RunError(
            f"run {run.name!r} failed: {one_line(rank, cause)}; the whole story is in {story}, "
            "the same command goes on from the newest checkpoint"
        ) from None


def _not_enough(config: Config, placement: Placement) -> str:
    attempts, seconds = config.cluster.controller_failure_limit + 1, config.cluster.worker_start_timeout_s
    return (
        f"train.workers={placement.workers}: the cluster did not bring up {placement} in {attempts} x "
        f"{seconds:g} s; lower --train.workers, let it grow, or raise --cluster.worker-start-timeout-s"
    )
