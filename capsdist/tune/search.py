"""Trials on Ray Tune, each a training run of its own. Only this module imports Ray Tune.

Built on Tune's own means: a `Searcher` that gives points, a scheduler, a callback that keeps the journal. A
trial's driver sits on the head node and takes no CPU; it calls the same `launch` as the training jobs, so the
loop, its workers, checkpoints and failures are those of any run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from capsdist.config import Config, with_values
from capsdist.errors import CapsdistError, RunError
from capsdist.launch import launch
from capsdist.launch.failure import is_out_of_memory, one_line, root_cause
from capsdist.launch.fitting import FitThread
from capsdist.launch.session import API_ADDRESS
from capsdist.runs.locks import Lock
from capsdist.storage.temporary import temporary_folder
from capsdist.train.metrics import Row
from capsdist.tune.journal import FAILED, FINISHED, OUT_OF_MEMORY, STOPPED, Journal, Trial
from capsdist.tune.source import Trials
from capsdist.tune.space import CELL

__all__ = ["Halving", "Plan", "run_trials", "scheduler_of"]

Show = Callable[[Row], None]

# On the head node of every cluster; what asks for a thousandth of it runs there and takes no CPU.
_DRIVER = {"CPU": 0, "node:__internal_head__": 0.001}
_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, Tune prints nothing: `SearchDisplay` does
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal and the runs' own metrics are the record
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports a reason and no error_percent
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
_STOP_S = 20.0  # for Tune to end its trials after a signal


@dataclass(frozen=True)
class Plan:
    """What all trials have in common.

    config: what points are laid over, storage being that of the trials' runs; grace_steps: None for no early
    stopping; cells: configurations of the trials that are cells of a grid, by name.
    """

    config: Config
    max_trials: int
    concurrency: int
    total_steps: int
    grace_steps: int | None
    reduction: int
    cells: Mapping[str, Config] = field(default_factory=dict)

    def config_of(self, values: Mapping[str, Any]) -> Config:
        """Return what the trial at the point `values` trains."""
        return self.cells[values[CELL]] if CELL in values else with_values(self.config, values)


def run_trials(plan: Plan, journal: Journal, source: Trials, show: Show, lock: Lock) -> bool:
    """Run trials until `plan.max_trials` have ended or `source` has no more; continue those under way first.

    Ray must have been started. Returns False after KeyboardInterrupt; the journal is closed then.

    Raises:
        RunError: Ray Tune failed, the journal cannot be written, or another process has taken `lock`.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    # Tune would copy the driver's AWS keys into the runtime environment of its trials, which Ray writes into
    # a log and shows in its dashboard. Nodes have keys of their own, as for any run. But what frees the
    # workers of a stopped trial has to know which Ray it belongs to, if there are several on this machine.
    names = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE = names | {API_ADDRESS}
    keeper = _Keeper(journal, source, show, lock)
    # Tune's own state: the journal is what is read again, so no other machine has to see it.
    with temporary_folder() as folder:
        thread = FitThread(_tuner(plan, journal, source, keeper, folder).fit)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
        except KeyboardInterrupt:
            journal.close()
            show(
                {"kind": "note", "message": "stopping: trials go on from their newest checkpoints next time"}
            )
            keeper.stop.set()
            thread.join(_STOP_S)
            return False
    try:
        thread.result()
    except Exception as error:
        _, cause = root_cause(error)
        if isinstance(cause, CapsdistError):
            raise cause from None
        raise RunError(f"Ray Tune failed: {one_line(None, cause)}; the same command goes on") from error
    return True


def _tuner(plan: Plan, journal: Journal, source: Trials, keeper: tune.Callback, folder: Path) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(_trainable(plan), _DRIVER),
        tune_config=tune.TuneConfig(
            search_alg=_Points(plan, journal, source),
            scheduler=scheduler_of(plan, journal),
            num_samples=plan.max_trials,
            max_concurrent_trials=plan.concurrency,
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(folder),
            callbacks=[keeper],
            failure_config=tune.FailureConfig(max_failures=1),  # of a trial's driver: its run goes on
            verbose=0,
        ),
    )


def _trainable(plan: Plan) -> Callable[[dict[str, Any]], None]:
    """Return what Tune runs as a trial: one training run with the trial's values."""

    def routing_trial(point: dict[str, Any]) -> None:
        config = plan.config_of(point["values"])
        train = config.train.model_copy(update={"name": point["name"]})
        report = _Reporter()
        try:
            summary = launch(config.model_copy(update={"train": train}), display=report)
        except CapsdistError as error:
            reason = "; ".join(str(error).splitlines())
            status = OUT_OF_MEMORY if is_out_of_memory(error) else FAILED
            tune.report({"status": status, "reason": reason})
            return
        end = {"step": summary.steps, "error_percent": summary.error_percent}
        tune.report({"status": FINISHED, "reason": "", **end})

    return routing_trial


class _Reporter:
    """Takes a trial's rows; reports to Tune what is on storage, so that a stopped trial is where it says."""

    def __init__(self) -> None:
        self._total = 0
        self._validation: Row = {}

    def __call__(self, row: Row) -> None:
        """Report the last validation with each checkpoint but the last, which `launch` returns."""
        match row["kind"]:
            case "start":
                self._total = row["total_steps"]
            case "validation":
                self._validation = row
            case "checkpoint" if self._validation and row["step"] < self._total:
                step, error = self._validation["step"], self._validation["error_percent"]
                tune.report({"step": step, "error_percent": error})


class _Points(Searcher):
    """Gives Tune the trials under way, then new points; how they end is told by `_Keeper`."""

    def __init__(self, plan: Plan, journal: Journal, source: Trials) -> None:
        super().__init__(metric="error_percent", mode="min")
        self._plan, self._journal, self._source = plan, journal, source
        self._under_way = journal.history.running()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the configuration of the next trial, FINISHED after the last."""
        trials = self._journal.history.trials
        if self._under_way:
            return _point(self._under_way.pop(0))
        if len(trials) >= self._plan.max_trials or (values := self._source.ask()) is None:
            return Searcher.FINISHED  # type: ignore[return-value]
        number = self._journal.history.next_number()
        self._journal.append("trial", number=number, values=values)
        return _point(trials[number])

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Take nothing: the points come from `source`."""
        return True

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Do nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the journal is the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _point(trial: Trial) -> dict[str, Any]:
    return {"number": trial.number, "name": trial.name, "values": trial.values}


class _Keeper(tune.Callback):
    """Writes to the journal what happens to trials, tells the source, and shows it; ends Tune if asked to."""

    def __init__(self, journal: Journal, source: Trials, show: Show, lock: Lock) -> None:
        self._journal, self._source, self._show, self._lock = journal, source, show, lock
        self.stop = threading.Event()

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        self._lock.check()
        if self.stop.is_set():
            raise RunError("the search was stopped")  # Tune ends its trials and passes it on

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._log(trial, "trial_start")

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if result.get("error_percent") is None:
            return
        number = trial.config["number"]
        self._journal.append(
            "report", number=number, step=result["step"], error_percent=result["error_percent"]
        )
        self._log(trial, "trial_report")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        last = trial.last_result
        self._end(trial, last.get("status", STOPPED), last.get("reason", ""))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error()
        reason = "its driver died" if error is None else one_line(*root_cause(error))
        self._end(trial, FAILED, reason)

    def _end(self, trial: Any, status: str, reason: str) -> None:
        number = trial.config["number"]
        self._journal.append("end", number=number, status=status, reason=reason)
        self._source.tell(self._journal.history.trials[number])
        self._log(trial, "trial_end")

    def _log(self, trial: Any, kind: str) -> None:
        self._show({"kind": kind, "trial": self._journal.history.trials[trial.config["number"]]})

    def __getstate__(self) -> dict[str, Any]:
        return {}


def scheduler_of(plan: Plan, journal: Journal) -> TrialScheduler:
    """Return the scheduler of `plan`, with what earlier starts reported; a stop that was decided is kept."""
    if plan.grace_steps is None:
        return FIFOScheduler()
    halving = Halving(plan.grace_steps, plan.reduction, plan.total_steps)
    for number in halving.replay(journal.history.reports):
        if journal.history.trials[number] in journal.history.running():
            journal.append("end", number=number, status=STOPPED, reason="")
    return halving


class Halving(ASHAScheduler):
    """ASHA (Li et al. 2018) in training steps, that goes on with the results of earlier starts of the search.

    Tune restores a search with an empty scheduler, and the first trial at a milestone always goes on: the
    weak ones would. Trials are known by their number, which stays; the last step ends them by itself.
    """

    def __init__(self, grace_steps: int, reduction: int, total_steps: int) -> None:
        super().__init__(
            time_attr="step",
            metric="error_percent",
            mode="min",
            grace_period=grace_steps,
            reduction_factor=reduction,
            max_t=max(total_steps - 1, grace_steps),
            stop_last_trials=False,
        )
        self._total_steps = total_steps

    def replay(self, reports: Sequence[tuple[int, int, float]]) -> set[int]:
        """Take in (number, step, error_percent) in their order; return the numbers it would have stopped."""
        stopped = set()
        for number, step, error in reports:
            trial: Any = SimpleNamespace(config={"number": number})
            if number not in self._trial_info:
                self.on_trial_add(None, trial)  # type: ignore[arg-type]
            result = {"step": step, "error_percent": error}
            if self.on_trial_result(None, trial, result) == TrialScheduler.STOP:  # type: ignore[arg-type]
                stopped.add(number)
        return stopped

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """As ASHA, by number."""
        super().on_trial_add(tune_controller, _by_number(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """As ASHA, by number; a trial at its last step is let end."""
        decision = super().on_trial_result(tune_controller, _by_number(trial), result)
        return TrialScheduler.CONTINUE if result.get("step", 0) >= self._total_steps else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        """As ASHA, by number."""
        super().on_trial_complete(tune_controller, _by_number(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """As ASHA, by number."""
        super().on_trial_remove(tune_controller, _by_number(trial))


def _by_number(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config["number"])
