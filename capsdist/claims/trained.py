"""Experiments with networks that were trained on different images: less data, and familiar views of toys."""

from __future__ import annotations

from collections.abc import Sequence

from capsdist.claims.experiment import Claim, Experiment, Values
from capsdist.claims.subject import Images, Subject, error_percent

__all__ = ["VIEWS", "less_data", "viewpoints"]

VIEWS = {"azimuth": "other azimuths", "elevation": "other elevations"}
"""Novel views of smallNORB in words, by what differs from the familiar ones."""


def less_data(fractions: Sequence[float]) -> Experiment:
    """Return the experiment of errors on the whole test split against the part of the training images."""

    def claim(place: int, fraction: float) -> Claim:
        return Claim(
            f"With {fraction:g} % of the training images a capsule network errs less than a CNN",
            "error in percent",
            lambda values: values["error_percent"][place],
            "lower",
        )

    return Experiment(
        "less_data",
        "Error against the number of training images",
        "part of the training images, percent",
        tuple(fractions),
        {"error_percent": "error in percent"},
        tuple(claim(place, fraction) for place, fraction in enumerate(fractions)),
    )


def viewpoints(factor: str) -> Experiment:
    """Return the experiment with test toys of smallNORB in the views of training, and in others."""
    words = VIEWS[factor]
    claims = (
        Claim(
            f"A capsule network reads toys from {words} than in training with fewer errors than a CNN",
            "error in percent", lambda values: values["error_percent"][1], "lower",
        ),
        Claim(
            f"The error of a capsule network rises less from familiar views to {words} than that of a CNN",
            "rise of the error in percent", _rise, "lower",
        ),
    )  # fmt: skip
    return Experiment(
        f"viewpoints_{factor}",
        f"smallNORB: test toys from {words} than in training",
        "views",
        ("familiar", "novel"),
        {"error_percent": "error in percent"},
        claims,
        _errors,
    )


def _errors(subject: Subject, *views: Images) -> Values:
    return {"error_percent": [error_percent(subject, images) for images in views]}


def _rise(values: Values) -> float:
    familiar, novel = values["error_percent"]
    return novel - familiar
