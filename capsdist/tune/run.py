"""Run a search: check, price, start or join Ray, try points, sum up.

Everything that can be refused is refused before Ray starts; Ray Tune itself is behind `search.py`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from capsdist.config import Config, Data, with_values
from capsdist.config.steps import steps_of, total_steps
from capsdist.console import announced
from capsdist.errors import ConfigError, Problem, RunError
from capsdist.launch import preflight
from capsdist.launch.session import names_cluster
from capsdist.runs.locks import Lock
from capsdist.train.metrics import Row
from capsdist.tune.budget import Budget, on_machine
from capsdist.tune.feasible import GIB, Limits, memory_here, refusal
from capsdist.tune.folder import SearchFolder
from capsdist.tune.journal import JOURNAL_NAME, Journal
from capsdist.tune.report import SearchResult, in_words, sum_up, table
from capsdist.tune.session import TrialSession, prepared
from capsdist.tune.source import Refuse, Source
from capsdist.tune.space import (
    Search,
    Space,
    Values,
    chosen,
    points,
    search_problems,
    validation_problem,
)

if TYPE_CHECKING:
    from capsdist.tune.search import Plan

__all__ = ["of_trials", "preview", "run_search"]

Show = Callable[[Row], None]

_PREVIEW = 500  # points that `preview` looks at


def run_search(config: Config, space: Space, search: Search, show: Show) -> SearchResult | None:
    """Search over `space` around `config` and return the result; None if Ctrl-C or SIGTERM ended it.

    A name that exists already is continued: ended trials are kept, those under way go on from their newest
    checkpoints; a search that is done returns at once. Joins the cluster that RAY_ADDRESS names, else starts
    Ray on this machine. `show` gets rows as `SearchDisplay` takes them.

    Raises:
        ConfigError: options or configuration are invalid, no point can be trained, or the name is taken.
        DataError, CheckpointError, RunError: as `launch`; Ray Tune failed, or no trial finished.

    Cost: 10 to 20 s a trial beside its training, most of it the start of its processes.
    """
    asked, space = config, chosen(space, config)
    if found := [*preflight.all_problems(config), *search_problems(config, space, search)]:
        raise ConfigError(found)
    config = preflight.absolute(config)

    def log(text: str) -> None:
        show({"kind": "note", "message": text})

    def status(text: str) -> None:
        show({"kind": "status", "message": text})

    folder = SearchFolder(config, log)
    begun = folder.as_begun(config)  # which may read other splits
    if begun and (problem := validation_problem(begun)):
        raise ConfigError([problem])
    checked = begun or config
    with announced(status, "reading all images once, to compare their checksums"):
        num_samples = preflight.check_data(checked).num_samples
    total, grace = _milestones(config, search, num_samples)
    with announced(status, f"trying to write to {folder.files}"):
        folder.create()
    with folder.lock(status) as lock:
        config, note = folder.check_continues(config, space, search)
        if problem := validation_problem(config):
            raise ConfigError([problem])
        if note:
            log(f"search {folder.name} {note}")
            if config.data != checked.data:
                num_samples = preflight.check_data(config).num_samples
            total, grace = _milestones(config, search, num_samples)
        done = folder.read_result()
        if done is not None and done.max_trials >= search.trials:
            log(f"search {folder.name} is done already")
            return done
        start = _Start(config, space, search, folder, folder.journal(), lock, total, grace)
        if not start.run(show):
            return None
        result = sum_up(asked, start.journal.history, folder.files, total, search.trials, log)
        folder.write_result(result)
        return result


def preview(config: Config, space: Space, search: Search) -> tuple[list[Problem], list[str]]:
    """Return why nothing can be searched, and lines: which of the first points cannot be trained, and why."""
    try:
        return [], _first_points(config, space, search)
    except ConfigError as error:
        return list(error.problems), []


def _first_points(config: Config, space: Space, search: Search) -> list[str]:
    """Return the lines of `preview`.

    Raises:
        ConfigError: there is no validation, no point can be trained, or the trials need more than there is.
    """
    space, begun = chosen(space, config), None
    with contextlib.suppress(RunError):  # the storage cannot be read now
        begun = SearchFolder(config).as_begun(config)
    if problem := validation_problem(preflight.absolute(begun or config)):
        raise ConfigError([problem])
    machine = None if names_cluster() else preflight.this_machine()
    budget = on_machine(config, search, machine) if machine else None
    refuse = _pricing(config, search, budget)
    seen = list(islice(points(space, search.seed), _PREVIEW))
    refused = [(values, reason) for values in seen if (reason := refuse(values)) is not None]
    if seen and len(refused) == len(seen):
        raise _none_feasible(space, refused[0][1])
    all_or_first = "the first " if len(seen) == _PREVIEW else "all "
    lines = [f"of {all_or_first}{len(seen)} points {len(seen) - len(refused)} can be trained"]
    lines += [f"infeasible: {in_words(values)}: {reason}" for values, reason in refused[:5]]
    return lines if budget is None else [*lines, f"trials: {budget}"]


def _milestones(config: Config, search: Search, num_samples: int) -> tuple[int, int | None]:
    """Return a trial's steps, and those before ASHA's first decision (None: it decides nothing).

    Raises:
        ConfigError: that is not before the end.
    """
    total = total_steps(config, num_samples)
    if search.scheduler != "asha":
        return total, None
    grace = search.grace_steps or steps_of(config, num_samples).before(1)
    if grace >= total:
        rule = f"ASHA would first decide after {grace} steps, and a trial ends after {total}"
        fix = "set fewer --search.grace-steps, train longer, or set --search.scheduler none"
        raise ConfigError([Problem("search.grace_steps", search.grace_steps, rule, fix)])
    return total, grace


def _pricing(config: Config, search: Search, budget: Budget | None) -> Refuse:
    """Return what refuses points; `budget`: of this machine, whose memory is the limit if none is given."""
    limit = search.worker_memory_gib
    num_bytes = None if limit is None else int(limit * GIB)
    if limit is None and budget is not None:
        if budget.device == "gpu":
            import torch

            num_bytes = torch.cuda.get_device_properties(0).total_memory
        else:
            num_bytes = memory_here() // (budget.concurrency * budget.num_workers)
    limits, base = Limits(search.max_parameters, num_bytes), config if budget is None else budget.lay(config)
    return lambda values: refusal(with_values(base, values), limits)


@dataclass(frozen=True)
class _Start:
    """One start of a search."""

    config: Config
    space: Space
    search: Search
    folder: SearchFolder
    journal: Journal
    lock: Lock
    total_steps: int
    grace_steps: int | None

    def run(self, show: Show) -> bool:
        """Run all trials that are left; False if a signal ended them."""
        machine, budget = prepared(self.config, self.search)
        refuse = _pricing(self.config, self.search, budget)
        if not self._any_left(refuse):
            return True
        source = self._source(refuse, show)
        self.folder.write_definition(self.config, self.space, self.search)
        self.journal.append("attempt")
        in_ray = TrialSession(self.config, self.search, machine, budget, self.journal, self.lock, show)
        return in_ray.run(source, self._plan, self._header)

    def _any_left(self, refuse: Refuse) -> bool:
        """Whether a trial is under way or a point is left to try.

        Raises:
            ConfigError: no point of the whole space can be trained.
        """
        history = self.journal.history
        if history.running():
            return True
        if len(history.trials) >= self.search.trials:
            return False
        reasons = [reason for _, reason in history.infeasible]
        note = lambda _, reason: reasons.append(reason)  # noqa: E731
        if Source(self.space, self.search.seed, history, refuse, note).ask() is not None:
            return True
        if not history.trials:
            raise _none_feasible(self.space, reasons[0])
        return False

    def _plan(self, budget: Budget) -> Plan:
        from capsdist.tune.search import Plan  # late: it imports Ray Tune

        base = budget.lay(self.config)
        train = base.train.model_copy(update={"storage": self.folder.trials})
        return Plan(
            config=base.model_copy(update={"train": train, "data": of_trials(base.data)}),
            max_trials=self.search.trials,
            concurrency=budget.concurrency,
            total_steps=self.total_steps,
            grace_steps=self.grace_steps,
            reduction=self.search.reduction,
        )

    def _header(self, budget: Budget) -> Row:
        """Return the row that opens what a person sees."""
        return {
            "kind": "search",
            "name": self.folder.name,
            "space": _given(self.space),
            "budget": str(budget),
            "max_trials": self.search.trials,
            "total_steps": self.total_steps,
            "grace_steps": self.grace_steps,
            "reduction": self.search.reduction,
            "ended": len(self.journal.history.ended()),
        }

    def _source(self, refuse: Refuse, show: Show) -> Source:
        def note(values: Values, reason: str) -> None:
            self.journal.append("infeasible", values=values, reason=reason)
            show({"kind": "infeasible", "values": values, "reason": reason})

        search = self.search
        return Source(self.space, search.seed, self.journal.history, refuse, note, search.searcher)


def of_trials(data: Data) -> Data:
    """Return `data` for trials: they test on the validation split, and none looks at the test split."""
    return data.model_copy(update={"test_split": data.validation_split})


def _given(space: Space) -> dict[str, object]:
    """Return the dimensions that are searched, with their values."""
    return space.model_dump(exclude_defaults=True)


def _none_feasible(space: Space, reason: str) -> ConfigError:
    rule, fix = f"no point can be trained, the first because {reason}", "search smaller values"
    return ConfigError([Problem("space", _given(space), rule, fix)])


def run_and_show(config: Config, space: Space, search: Search, records: Path) -> bool:
    """Search as `run_search`, show it to a person, and draw search.png; False if a signal ended it.

    `records`: where `search.record` writes to.
    """
    from capsdist.tune.figure import save_figure
    from capsdist.tune.progress import SearchDisplay

    with SearchDisplay() as display:
        try:
            result = run_search(config, space, search, display)
        except KeyboardInterrupt:  # while Ray starts
            return False
        if result is None:
            return False
        files = SearchFolder(preflight.absolute(config)).files
        display.result(result, save_figure(result, files))
        if search.record:
            journal = (files.read(JOURNAL_NAME) or b"").decode(errors="replace")
            _record(records, result, journal, {"config": config, "space": space, "search": search})
        return True


def _record(records: Path, result: SearchResult, journal: str, options: Mapping[str, BaseModel]) -> None:
    """Write a record of a search that is done: what it was over, each trial, each start, and its journal."""
    from capsdist.bench.record import write_record

    count = Counter(row.status for row in result.trials)
    figures = {
        "num_trials": len(result.trials),
        "num_by_status": dict(count),
        "num_infeasible": len(result.infeasible),
        "elapsed_s": result.attempts[-1]["last"] - result.attempts[0]["began"],
        **{name: value for name, value in result.to_dict().items() if name != "folder"},
    }
    log = "\n".join([*table(result), "", journal])
    config = {name: option.model_dump(mode="json") for name, option in options.items()}
    write_record(records, "tune-routing", config=config, figures=figures, log=log)
