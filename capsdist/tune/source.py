"""Choose the next point: in random order, or by Optuna, both without points that cannot be trained.

Optuna (Akiba et al. 2019, its TPE sampler) is asked and told directly, not through Ray's wrapper, which
would spend trials on infeasible points and on repetitions, and begins anew when a search is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, Protocol

from capsdist.errors import ConfigError, Problem
from capsdist.tune.journal import FINISHED, STOPPED, History, Trial
from capsdist.tune.space import FIELDS, RATE, Space, Values, points, rounded

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Refuse", "Source", "Trials"]

Refuse = Callable[[Values], str | None]
"""Why a point cannot be trained, None if it can."""

Note = Callable[[Values, str], None]
"""Called with every point that is refused, and the reason."""

_MAX_REFUSED = 1000  # in a row, after which the rest of the space counts as infeasible
_MAX_ASKED = 30  # suggestions of Optuna without a new point, before a random one is taken


class Trials(Protocol):
    """What trials are made of."""

    def ask(self) -> dict[str, Any] | None:
        """Return the point of a new trial, None if there is none."""
        ...

    def tell(self, trial: Trial) -> None:
        """Hear how `trial` ended."""
        ...


class Source:
    """Gives distinct feasible points: suggestions of Optuna (`searcher`), then those in random order.

    `history` is read at every call: no point of an earlier start is given again, and Optuna learns from all
    ended trials. The random order is that of `capsdist.tune.space.points`.

    Raises:
        ConfigError: optuna is not installed.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        history: History,
        refuse: Refuse,
        note: Note,
        searcher: Literal["random", "optuna"] = "random",
    ) -> None:
        self._history, self._refuse, self._note = history, refuse, note
        self._random: Iterator[dict[str, Any]] = points(space, seed)
        self._sampler = _Sampler(space, seed) if searcher == "optuna" else None
        for trial in history.ended():
            self.tell(trial)

    def ask(self) -> dict[str, Any] | None:
        """Return a new feasible point, None if there is none."""
        suggested = islice(iter(self._sampler.suggest, None), _MAX_ASKED) if self._sampler else ()
        refused = 0
        for values in chain(suggested, self._random):
            if _known(values, self._history):
                continue
            reason = self._refuse(values)
            if reason is None:
                return values
            self._note(values, reason)
            refused += 1
            if refused == _MAX_REFUSED:
                return None
        return None

    def tell(self, trial: Trial) -> None:
        """Let later suggestions depend on how `trial` ended."""
        if self._sampler:
            self._sampler.add(trial)


class _Sampler:
    """Optuna's TPE sampler."""

    def __init__(self, space: Space, seed: int) -> None:
        try:
            import optuna
        except ImportError:
            rule, fix = "the package optuna is not installed", "pip install 'capsdist[tune]', or set random"
            raise ConfigError([Problem("search.searcher", "optuna", rule, fix)]) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._distributions, self._bounds = _distributions(space), space.learning_rate_range
        sampler = optuna.samplers.TPESampler(seed=seed)
        self._study = optuna.create_study(direction="minimize", sampler=sampler)

    def suggest(self) -> dict[str, Any]:
        """Return what Optuna would try; it counts as failed until `add` adds it under its own name."""
        asked = self._study.ask(self._distributions)
        self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        values = {field: asked.params[field] for field in FIELDS.values() if field in asked.params}
        if self._bounds is not None:
            values[RATE] = rounded(values[RATE], *self._bounds)
        return values

    def add(self, trial: Trial) -> None:
        """Add an ended trial: TPE ranks a stopped one by the step that it reached."""
        states = self._optuna.trial.TrialState
        state = {FINISHED: states.COMPLETE, STOPPED: states.PRUNED}.get(trial.status, states.FAIL)
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=state,
                params=dict(trial.values),
                distributions=self._distributions,
                value=trial.error_percent if state == states.COMPLETE else None,
                intermediate_values=dict(trial.reports),
            )
        )


def _known(values: Values, history: History) -> bool:
    return any(trial.values == values for trial in history.trials.values()) or any(
        refused == values for refused, _ in history.infeasible
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, BaseDistribution] = {
        field: CategoricalDistribution(getattr(space, name))
        for name, field in FIELDS.items()
        if getattr(space, name)
    }
    if space.learning_rate_range is not None:
        found[RATE] = FloatDistribution(*space.learning_rate_range, log=True)
    return found
