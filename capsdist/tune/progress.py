"""Show a search to a person: a line when a trial begins, reports or ends, or a live table.

Fed with rows, as `capsdist.train.display` is; plain lines where output is no terminal or a Ray job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

from capsdist.console import print_to
from capsdist.train.metrics import Row
from capsdist.train.screen import Screen
from capsdist.tune.journal import FINISHED, STOPPED, Trial
from capsdist.tune.report import SearchResult, in_words, short_values, table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SearchDisplay"]

_BEST = 5  # finished trials of the live table
_MAX_INFEASIBLE = 3  # lines about points that cannot be trained; the table at the end has more


class SearchDisplay(Screen):
    """Shows a search; call it with each row, in order. Unknown kinds of rows are passed over.

    plain: None chooses by the output: plain unless it is a terminal and no Ray job.
    """

    def __init__(self, file: TextIO | None = None, *, plain: bool | None = None) -> None:
        super().__init__(file, plain=plain)
        self._search: Row = {}
        self._trials: dict[int, Trial] = {}
        self._infeasible = 0

    def result(self, result: SearchResult, picture: str | None = None) -> None:
        """Show the outcome; the last line holds the lowest error."""
        self.close()
        self._line("")
        for line in table(result):
            self._line(line)
        self._line("")
        if picture:
            self._line(f"plots: {picture}")
        self._line(f"train the best one again, as {result.config['train']['name']}:")
        self._line(result.command)
        finished = sum(row.status == FINISHED for row in result.trials)
        self._line(
            f"error_percent {result.error_percent:.2f}  ({result.best}, the best of {finished} finished of "
            f"{len(result.trials)} trials, search {result.name})"
        )

    def _show_note(self, row: Row) -> None:
        self._line(row["message"])

    _show_status = _show_note

    def _show_search(self, row: Row) -> None:
        self._search = row
        dimensions = ", ".join(row["space"])
        self._line(
            f"search {row['name']}: up to {row['max_trials']} trials over {dimensions}; {row['budget']}"
        )
        if row["grace_steps"] is None:
            self._line(f"every trial has {row['total_steps']:,} steps")
        else:
            self._line(
                f"a trial has {row['total_steps']:,} steps; ASHA keeps one in {row['reduction']} after "
                f"{_milestones(row)}"
            )
        if row["ended"]:
            self._line(f"continues: {row['ended']} trials have ended already")

    def _show_grid(self, row: Row) -> None:
        self._search = row
        ended = f", {row['ended']} of them finished already" if row["ended"] else ""
        self._line(f"grid {row['name']}: {row['max_trials']} cells{ended}; {row['budget']}")

    def _show_infeasible(self, row: Row) -> None:
        self._infeasible += 1
        if self._infeasible <= _MAX_INFEASIBLE:
            self._line(f"infeasible: {in_words(row['values'])}: {row['reason']}")

    def _show_trial_start(self, row: Row) -> None:
        trial: Trial = row["trial"]
        again = f" again, after step {trial.step:,}" if trial.reports else ""
        self._told(trial, f"begins{again}: {in_words(trial.values)}".rstrip(": "))

    def _show_trial_report(self, row: Row) -> None:
        trial: Trial = row["trial"]
        total = self._search["total_steps"]
        total = total if isinstance(total, int) else total[trial.name]  # cells of a grid have their own
        if trial.step < total:  # the last report comes with the end
            self._told(trial, f"step {trial.step:,}/{total:,}  {_error(trial)}", always=False)

    def _show_trial_end(self, row: Row) -> None:
        trial: Trial = row["trial"]
        after = f" after step {trial.step:,}" if trial.status == STOPPED else ""
        self._told(
            trial, f"{trial.status}{after}{f': {trial.reason}' if trial.reason else ''}  {_error(trial)}"
        )

    def _told(self, trial: Trial, text: str, *, always: bool = True) -> None:
        """Show what happened to a trial: a line where output is plain, else in the live table."""
        self._trials[trial.number] = trial
        if self._plain:
            self._line(f"{trial.name}  {text}".rstrip())
            return
        if self._live is None:
            from rich.live import Live

            self._open(Live(self._table(), console=self._rich(), refresh_per_second=4, transient=True))
        else:
            self._live.update(self._table())

    def _table(self) -> Table:
        """Return the trials under way and the best of the others."""
        from rich.table import Table

        trials = list(self._trials.values())
        under_way = [trial for trial in trials if trial.status == "running"]
        others = [trial for trial in trials if trial.status in (FINISHED, STOPPED)]
        others.sort(key=lambda trial: (trial.status != FINISHED, trial.error_percent or 0.0))
        names = list(short_values(trials[0].values))
        view = Table(box=None, pad_edge=False, header_style="dim", caption_justify="left")
        for name in ("trial", *names, "step", "error_percent", "status"):
            view.add_column(name, justify="left" if name in ("trial", "status") else "right", no_wrap=True)
        for trial in under_way + others[:_BEST]:
            style = "" if trial.status == "running" else "green" if trial.status == FINISHED else "dim"
            error = "" if trial.error_percent is None else f"{trial.error_percent:.2f}"
            values = short_values(trial.values).values()
            view.add_row(trial.name, *values, f"{trial.step:,}", error, trial.status, style=style)
        ended = len(trials) - len(under_way) + self._search["ended"]
        view.caption = f"{ended} of {self._search['max_trials']} trials have ended"
        return view

    def _line(self, text: str) -> None:
        """Print one line, above the live table."""
        if self._plain or self._live is None:
            print_to(self._file, text)
        else:
            self._rich().print(text, markup=False, soft_wrap=True)


def _error(trial: Trial) -> str:
    return "" if trial.error_percent is None else f"error_percent {trial.error_percent:.2f}"


def _milestones(row: dict[str, Any]) -> str:
    """Steps at which ASHA decides."""
    steps, step = [], row["grace_steps"]
    while step < row["total_steps"]:
        steps.append(f"{step:,}")
        step *= row["reduction"]
    return ", ".join(steps) + " steps"
