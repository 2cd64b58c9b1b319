"""Run a grid: named cells, each a whole configuration, by the executor of searches.

A cell is a training run of its own, to its end, and is tested on its test split. Cells run side by side as
far as the cluster goes. A grid of the same name goes on with the cells that have not finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from capsdist.config import Config, with_values
from capsdist.config.steps import total_steps
from capsdist.console import announced
from capsdist.errors import ConfigError, DocumentError, RunError
from capsdist.launch import preflight
from capsdist.runs.files import read_document
from capsdist.runs.locks import Lock
from capsdist.runs.rundir import RunFolder
from capsdist.storage import join
from capsdist.storage.documents import parse_document
from capsdist.train.metrics import Row
from capsdist.tune.budget import Budget, on_machine
from capsdist.tune.cells import Cell, changed_values, grid_problems
from capsdist.tune.folder import GRID_NAME, SearchFolder
from capsdist.tune.journal import FINISHED, STOPPED, Journal, Trial
from capsdist.tune.session import TrialSession, prepared
from capsdist.tune.space import CELL, Search

if TYPE_CHECKING:
    from capsdist.tune.search import Plan

__all__ = ["run_grid"]

Show = Callable[[Row], None]


class _Definition(BaseModel):
    """What grid.json holds: all cells that were ever asked for."""

    model_config = ConfigDict(extra="forbid")

    cells: dict[str, Config]


class _Missing:
    """Gives the cells that have not finished, once each: a `capsdist.tune.source.Trials`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = iter(names)

    def ask(self) -> dict[str, Any] | None:
        return next(({CELL: name} for name in self._names), None)

    def tell(self, trial: Trial) -> None:
        """Learn nothing."""


def run_grid(config: Config, cells: Mapping[str, Config], show: Show) -> dict[str, Cell] | None:
    """Train all `cells`, by name, and return what became of them; None if Ctrl-C or SIGTERM ended it.

    config: its `train.storage` and `train.name` are the folder of the grid; workers, device and what is asked
    of Ray are those of every cell. A name that exists already is continued: finished cells are kept, those
    under way go on from their newest checkpoints, failed ones are tried again; further cells may be asked
    for. `show` gets rows as `SearchDisplay` takes them.

    Raises:
        ConfigError: a cell is invalid, or was begun with other values; the name is taken.
        DataError, RunError: as `launch`; Ray Tune failed. A cell that fails is an outcome, no error.

    Cost: 10 to 20 s a cell beside its training, most of it the start of its processes.
    """

    def log(text: str) -> None:
        show({"kind": "note", "message": text})

    def status(text: str) -> None:
        show({"kind": "status", "message": text})

    config = preflight.absolute(config)
    folder = SearchFolder(config, log)
    cells = {name: _placed(cell, folder.trials, name) for name, cell in cells.items()}
    if found := grid_problems(cells):
        raise ConfigError(found)
    with announced(status, "reading all images once, to compare their checksums"):
        steps = _steps(cells)
    with announced(status, f"trying to write to {folder.files}"):
        folder.create()
    with folder.lock(status) as lock:
        known = _check_continues(folder, cells)
        journal = folder.journal()
        states = _states(journal, cells)
        missing = [name for name, trial in states.items() if trial is None or trial.status != FINISHED]
        if not missing:
            log(f"grid {folder.name} is done already")
            return _outcomes(folder, states)
        start = _Start(config, cells, steps, folder, journal, lock, show)
        if not start.run(missing, known):
            return None
        return _outcomes(folder, _states(journal, cells))


@dataclass(frozen=True)
class _Start:
    """One start of a grid; steps: of each cell."""

    config: Config
    cells: Mapping[str, Config]
    steps: Mapping[str, int]
    folder: SearchFolder
    journal: Journal
    lock: Lock
    show: Show

    def run(self, missing: Sequence[str], known: Mapping[str, Config]) -> bool:
        """Run the cells that have not finished; False if a signal ended them. known: what grid.json holds."""
        search = Search(scheduler="none")
        machine, budget = prepared(self.config, search)
        if machine and budget and len(missing) < budget.concurrency:  # they share all cores
            budget = on_machine(self.config, Search(concurrency=len(missing)), machine)
        cells = {name: cell.model_dump(mode="json") for name, cell in {**known, **self.cells}.items()}
        self.folder.write(GRID_NAME, {"cells": cells})
        journal = self.journal
        journal.append("attempt")
        for trial in journal.history.running():
            if trial.name not in self.cells:
                journal.append("end", number=trial.number, status=STOPPED, reason="not asked for any more")
        under_way = [trial.name for trial in journal.history.running()]
        new = [name for name in missing if name not in under_way]
        session = TrialSession(self.config, search, machine, budget, journal, self.lock, self.show)
        most = len(journal.history.trials) + len(new)
        return session.run(_Missing(new), lambda budget: self._plan(budget, most), self._header)

    def _plan(self, budget: Budget, max_trials: int) -> Plan:
        from capsdist.tune.search import Plan  # late: it imports Ray Tune

        return Plan(
            config=self.config,
            max_trials=max_trials,
            concurrency=budget.concurrency,
            total_steps=max(self.steps.values()),
            grace_steps=None,
            reduction=2,
            cells={name: budget.lay(cell) for name, cell in self.cells.items()},
        )

    def _header(self, budget: Budget) -> Row:
        """Return the row that opens what a person sees."""
        states = _states(self.journal, self.cells).values()
        return {
            "kind": "grid",
            "name": self.folder.name,
            "budget": str(budget),
            "max_trials": len(self.cells),
            "total_steps": self.steps,
            "ended": sum(trial is not None and trial.status == FINISHED for trial in states),
        }


def _placed(cell: Config, storage: str, name: str) -> Config:
    return with_values(preflight.absolute(cell), {"train.storage": storage, "train.name": name})


def _steps(cells: Mapping[str, Config]) -> dict[str, int]:
    """Check the data of all cells, each set once, and return the steps of each cell."""
    checked = {cell.data: cell for cell in cells.values()}  # the run of each cell checks what else it asks
    samples = {data: preflight.check_data(cell).num_samples for data, cell in checked.items()}
    return {name: total_steps(cell, samples[cell.data]) for name, cell in cells.items()}


def _check_continues(folder: SearchFolder, cells: Mapping[str, Config]) -> dict[str, Config]:
    """Return the cells that the folder holds; those of them that are in `cells` have not changed.

    Raises:
        ConfigError: they have, or the folder is of something else.
        RunError: grid.json cannot be read.
    """
    folder.check_kind("grid")
    try:
        stored = read_document(
            folder.files, GRID_NAME, lambda content: parse_document(content, _Definition, sealed=True)
        )
    except DocumentError as error:
        raise RunError(f"{error}; delete the file and start again, or choose another --train.name") from None
    known = stored.cells if stored else {}
    changed = {
        f"{name}: {field}": values
        for name, cell in cells.items()
        if name in known
        for field, values in changed_values(known[name], cell).items()
    }
    if changed:
        raise folder.another("grid", changed)
    return known


def _states(journal: Journal, cells: Iterable[str]) -> dict[str, Trial | None]:
    """Return the newest trial of each cell."""
    newest = {trial.name: trial for trial in journal.history.trials.values()}
    return {name: newest.get(name) for name in cells}


def _outcomes(folder: SearchFolder, states: Mapping[str, Trial | None]) -> dict[str, Cell]:
    found = {}
    for name, trial in states.items():
        place = join(folder.trials, name)
        if trial is None or trial.status != FINISHED:
            status, reason = (trial.status, trial.reason) if trial else ("missing", "")
            found[name] = Cell(name, place, status, reason)
            continue
        result = RunFolder(place).read_result()
        interval = result.error_interval_percent if result else None
        found[name] = Cell(name, place, FINISHED, "", trial.step, trial.error_percent, interval)
    return found
