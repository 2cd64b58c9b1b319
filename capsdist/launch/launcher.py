"""Launch a run: check everything, start or join Ray, train on its workers, show what happens.

Built on Ray Train's own means: `TorchTrainer` restarts failed workers from the newest checkpoint and finds
it again when the same name is started again. `fit` blocks, so it runs in a thread; the main thread shows
rows and owns the signals.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from capsdist.config import Config
from capsdist.config.steps import total_steps
from capsdist.console import announced
from capsdist.errors import CapsdistError, ConfigError, DocumentError, RunError
from capsdist.launch import preflight
from capsdist.launch.as_data import fitted
from capsdist.launch.dry_run import dry_run_of
from capsdist.launch.failure import full_disk, one_line, root_cause
from capsdist.launch.preflight import Machine, Placement
from capsdist.launch.session import prepare_ray, ray_session
from capsdist.launch.signals import StopSignals, job_warning
from capsdist.runs.locks import Lock
from capsdist.runs.record import read_rows
from capsdist.runs.rundir import FAILURE_LOG, RunFolder, RunSummary, Status, run_place
from capsdist.runs.stale import remove_left_behind, removed_if_unbegun
from capsdist.train.metrics import Row

if TYPE_CHECKING:
    from capsdist.launch.worker import Fault, Observer

__all__ = ["launch"]

Show = Callable[[Row], None]


def launch(
    config: Config,
    *,
    display: Show | None = None,
    fault: Fault | None = None,
    observer: Observer | None = None,
) -> RunSummary:
    """Train what `config` describes and return the summary of the run, which also becomes its result.json.

    A name that exists already is continued from its newest checkpoint; a finished run returns at once.
    Joins the cluster that RAY_ADDRESS names, else starts Ray on this machine and ends it. Ctrl-C, SIGTERM and
    SIGHUP (in the main thread) end the run with status "stopped", after a last checkpoint if it has begun to
    train; a second signal ends it without. With `train.dry_run` nothing is left behind. `display` gets every
    row of events (default: `Display`); `fault` makes workers fail on purpose, `observer` sees which samples
    they train on.

    Raises:
        ConfigError: the configuration is invalid, does not fit this machine, or is not that of the run.
        DataError, CheckpointError, RunError: data, checkpoint, storage or engine cannot be used, or
            training failed; one line, with the remedy.

    Cost: 10 to 20 s before the first step, most of it the start of Ray and its processes.
    """
    if display is None:
        from capsdist.train.display import Display

        with Display() as show:
            return launch(config, display=show, fault=fault, observer=observer)
    config = fitted(config)
    if found := preflight.all_problems(config):
        raise ConfigError(found)
    config = preflight.absolute(config)
    dry = dry_run_of(config) if config.train.dry_run else contextlib.nullcontext(config)
    with StopSignals() as signals, dry as config:
        attempt = _Attempt(config, display, fault, observer)
        try:
            return attempt.start(signals)
        except KeyboardInterrupt:
            return attempt.summary or attempt.summarise("stopped")


class _Attempt:
    """One start of a run; `summary`: what has become of it, once that is decided."""

    def __init__(self, config: Config, display: Show, fault: Fault | None, observer: Observer | None) -> None:
        self.config, self.display, self.fault, self.observer = config, display, fault, observer
        self.run = RunFolder(run_place(config), self._note)
        self.summary: RunSummary | None = None
        self._began = time.monotonic()

    def start(self, signals: StopSignals) -> RunSummary:
        """Check, train unless the run is done already, and return the summary."""
        remove_left_behind(self.run.files)
        checked = self._as_begun_here()
        num_samples = self._check_data(checked)
        machine = preflight.this_machine() if prepare_ray() else None
        placement = preflight.place_on_machine(self.config, machine) if machine else None
        if placement:
            preflight.check_engine(self.config, placement)
        preflight.check_network(self.config, (placement or self.config.train).num_workers)
        with announced(self._status, f"trying to write to {self.run}"):
            self.run.create()
        with removed_if_unbegun(self.run.files), self.run.lock(self._status) as lock:
            self.config, note = self.run.as_begun(self.config)
            if note:
                self.display({"kind": "note", "message": f"run {self.run.name} {note}"})
            if self.config.data != checked.data:
                num_samples = self._check_data(self.config)
            self.run.check_continues(self.config, num_samples)
            if not self.run.steps_saved():
                preflight.check_initial(self.config, self._note)
            result = self.run.read_result()
            if result and result.status == "done" and result.steps == total_steps(self.config, num_samples):
                self._show_again(result)
                return result
            try:
                return self._in_ray(machine, placement, signals, lock)
            except KeyboardInterrupt:
                if self.summary is None:  # Ray was about to start
                    self.summary = self.summarise("stopped")
                    self.run.write_result(self.summary)
                return self.summary

    def _as_begun_here(self) -> Config:
        """Return what continues the run, which may read other splits; a run far away is asked later."""
        return self.config if self.run.files.local is None else self.run.as_begun(self.config)[0]

    def _check_data(self, config: Config) -> int:
        """Check all data; return the number of training samples."""
        with announced(self._status, "reading all images once, to compare their checksums"):
            return preflight.check_data(config).num_samples

    def summarise(self, status: Status, end: Row | None = None, reason: str | None = None) -> RunSummary:
        """Return what has become of the run; `end`: the loop's last row, where it came to one."""
        steps = end["step"] if end and (status == "done" or self.config.train.dry_run) else None
        steps = self.run.steps_saved() if steps is None else steps
        figures = (steps, end["error_percent"], end["images_per_s"]) if end else (steps, None, None)
        wall_s = time.monotonic() - self._began
        interval = end.get("error_interval_percent") if end else None
        return RunSummary(self.run.name, str(self.run), status, *figures, wall_s, reason, interval)

    def _show_again(self, result: RunSummary) -> None:
        """Show the last lines of a run that is done already."""
        self._note(f"run {self.run.name} is done already")
        try:
            rows = read_rows(self.run.files, self._note)
        except DocumentError as error:
            self._note(f"warning: passed over the record of the run: {error}")
            return
        for row in [row for row in rows if row["kind"] == "end"][-1:]:
            self.display(row | {"step": result.steps, "error_percent": result.error_percent})

    def _in_ray(
        self, machine: Machine | None, placement: Placement | None, signals: StopSignals, lock: Lock
    ) -> RunSummary:
        """Start or join Ray and train; the summary is on storage before Ray ends, which takes seconds."""
        if machine:
            self._status(f"starting Ray on {machine.cores} cores")
        with contextlib.ExitStack() as stack:
            with signals.starting():
                resources = stack.enter_context(ray_session(self.config, machine, log=self._status))
            placement = placement or preflight.place_on_cluster(self.config, resources)
            note = f" ({placement.note})" if placement.note else ""
            self._status(f"starting {placement}{note}")
            if warning := job_warning():
                self._note(warning)
            self.run.begin(self.config)
            from capsdist.launch.fit import fit  # late: it imports Ray Train

            try:
                with self._errors_of_ray(placement):
                    end = fit(self.config, placement, self.display, signals, lock, self.fault, self.observer)
            except KeyboardInterrupt:
                end = None
            except CapsdistError as error:
                if lock.taken_by is None:
                    with contextlib.suppress(CapsdistError):  # the storage may be what has failed
                        self.run.write_result(self.summarise("failed", reason=str(error)))
                raise
            status: Status = "done" if end and not end["stopped"] else "stopped"
            self.summary = self.summarise(status, end)
            self.run.write_result(self.summary)
        return self.summary

    @contextlib.contextmanager
    def _errors_of_ray(self, placement: Placement) -> Iterator[None]:
        """Turn what Ray raises into one line; a file of the run gets all tracebacks."""
        import ray.exceptions
        import ray.train

        from capsdist.launch.fit import cluster_resources

        try:
            yield
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            rank, cause = root_cause(error)
            if self.config.train.dry_run:  # its folder does not stay
                self._note(str(error))
            with contextlib.suppress(RunError):
                self.run.files.write(FAILURE_LOG, f"{error}\n".encode(errors="backslashreplace"))
            if isinstance(cause, CapsdistError):
                raise cause from None
            if rank is None and (reason := full_disk(cause)):  # Ray's controller writes to the storage alone
                raise RunError(
                    f"{self.config.train.storage}: cannot be written ({reason}); make room there, the same "
                    "command goes on from the newest checkpoint"
                ) from None
            if type(cause).__name__ == "WorkerGroupStartupTimeoutError":
                raise RunError(_not_enough(self.config, placement, cluster_resources())) from None
            if self.config.train.dry_run:
                raise RunError(
                    f"the dry run failed: {one_line(rank, cause)}; its traceback is above"
                ) from None
            raise RunError(
                f"run {self.run.name!r} failed: {one_line(rank, cause)}; all tracebacks are in "
                f"{self.run.files.path(FAILURE_LOG)}, the same command goes on from the newest checkpoint"
            ) from None

    def _status(self, message: str) -> None:
        self.display({"kind": "status", "message": message})

    def _note(self, message: str) -> None:
        self.display({"kind": "note", "message": message})


def _not_enough(config: Config, placement: Placement, resources: str) -> str:
    attempts, seconds = config.launch.controller_failure_limit + 1, config.launch.worker_start_timeout_s
    return (
        f"train.num_workers={placement.num_workers}: the cluster did not bring up {placement} in "
        f"{attempts} x {seconds:g} s, and has {resources} now; lower --train.num-workers, let it grow, "
        "or raise --launch.worker-start-timeout-s"
    )
