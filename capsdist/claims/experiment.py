"""An experiment: conditions, measured series, claims; and what intervals over seeds say of the claims.

Every seed gives one number for each network, over all images; numbers of equal seeds are a pair. Images of
different seeds are never pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from capsdist.statistics import mean_interval, paired_interval

__all__ = [
    "BASELINE", "CAPSNET", "Claim", "Experiment", "Finding", "Measured", "Result", "Values", "Verdict",
    "finding", "mean_of", "verdict_of",
]  # fmt: skip

CAPSNET, BASELINE = "capsnet", "baseline"
"""Names of the two networks in tables and files."""

Values = Mapping[str, Sequence[float]]
"""What is measured of one network: for each series a number a condition."""

Measured = Mapping[str, Sequence[Values]]
"""Values of both networks, a list with one entry a seed."""

Verdict = Literal["supported", "not supported by these data", "contradicted"]


@dataclass(frozen=True)
class Claim:
    """A statement about a number that each seed gives: of both networks, or of the capsule network alone.

    Attributes:
        text: the statement, for people, without a full stop.
        what: the number in words, with its unit.
        number: makes it of what was measured of one network.
        direction: whether the statement says that the capsule network's number is lower or higher.
        than: "baseline", its number for the same seed; or a fixed number.
    """

    text: str
    what: str
    number: Callable[[Values], float]
    direction: Literal["lower", "higher"]
    than: Literal["baseline"] | float = "baseline"


@dataclass(frozen=True)
class Experiment:
    """What is done to test images, what is measured, and which claims that decides.

    Attributes:
        name: of its figure and its part of claims.json.
        title: for people.
        condition: what the conditions are, with the unit.
        conditions: the first is that of the plain test images where there is one.
        series: measured names, and what stands at their axis.
        claims: decided by the values.
        measure: returns the values of a network on images, of each split one argument; None: the values are
            the runs' own errors.
        constants: what decides the values besides conditions and series, JSON-able: seeds and sizes.
    """

    name: str
    title: str
    condition: str
    conditions: tuple[float | str, ...]
    series: Mapping[str, str]
    claims: tuple[Claim, ...]
    measure: Callable[..., Values] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Return what decides the values besides network and images, JSON-able."""
        return {
            "conditions": list(self.conditions),
            "series": list(self.series),
            "constants": dict(self.constants),
        }


@dataclass(frozen=True)
class Finding:
    """What the seeds say of a claim.

    mean, low, high: of the difference from what it is compared with, and its 95 % interval by Student's t;
    None with fewer than two seeds. sentence: in words, computed from them.
    """

    claim: str
    verdict: Verdict
    mean: float | None
    low: float | None
    high: float | None
    sentence: str


@dataclass(frozen=True)
class Result:
    """An experiment that was done."""

    experiment: Experiment
    measured: Measured
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, experiment: Experiment, measured: Measured) -> Result:
        """Return the experiment with what its claims come to."""
        return cls(experiment, measured, tuple(finding(claim, measured) for claim in experiment.claims))

    def seeds(self, network: str, series: str, place: int) -> list[float]:
        """Return the values of a network in the condition number `place`, one a seed."""
        return [values[series][place] for values in self.measured[network]]

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON holds it: every number of every seed, differences, findings."""
        own = self.experiment
        differences = {
            series: [
                _interval(self.seeds(CAPSNET, series, place), self.seeds(BASELINE, series, place))
                for place in range(len(own.conditions))
            ]
            for series in own.series
        }
        return {
            "title": own.title,
            "condition": own.condition,
            "conditions": list(own.conditions),
            "constants": dict(own.constants),
            "series": dict(own.series),
            "seeds": {
                network: [{name: list(row[name]) for name in own.series} for row in rows]
                for network, rows in self.measured.items()
            },
            "capsnet_minus_baseline": differences,
            "claims": [vars(each) for each in self.findings],
        }


def mean_of(series: str, first: int = 0) -> Callable[[Values], float]:
    """Return a function of values: the mean of a series over the conditions from number `first` on."""

    def mean(values: Values) -> float:
        chosen = values[series][first:]
        return sum(chosen) / len(chosen)

    return mean


def finding(claim: Claim, measured: Measured) -> Finding:
    """Return what the seeds say of a claim: an interval that holds 0 supports neither it nor its opposite."""
    own = [claim.number(values) for values in measured[CAPSNET]]
    if isinstance(claim.than, str):
        other, against = [claim.number(values) for values in measured[BASELINE]], "the CNN's"
    else:
        other, against = [claim.than] * len(own), f"{claim.than:g}"
    found = _interval(own, other)
    verdict = verdict_of(found, claim.direction)
    if found is None:
        words = f"{len(own)} seed gives no interval"
        return Finding(claim.text, verdict, None, None, None, f"{claim.text}: {verdict}; {words}.")
    mean, low, high = found
    means = f"{mean_interval(own)[0]:.3g} against {against}"
    means += f" {mean_interval(other)[0]:.3g}" if isinstance(claim.than, str) else ""
    words = f"{claim.what} {means}, difference {mean:+.3g} (95 % interval {low:+.3g} to {high:+.3g}, "
    sentence = f"{claim.text}: {verdict}; {words}{len(own)} seeds)."
    return Finding(claim.text, verdict, mean, low, high, sentence)


def verdict_of(interval: Sequence[float] | None, direction: Literal["lower", "higher"]) -> Verdict:
    """Return what the interval (mean, low, high) of a difference says of a claim about its sign."""
    if interval is None or interval[1] == interval[2]:  # equal differences tell nothing of their spread
        return "not supported by these data"
    _, low, high = interval
    if direction == "lower":
        low, high = -high, -low
    return "supported" if low > 0 else "contradicted" if high < 0 else "not supported by these data"


def _interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float] | None:
    return paired_interval(first, second) if len(first) > 1 else None
