"""Metrics of a run for Prometheus; Ray exports them on every node with the prefix `ray_`.

Exported through `ray.util.metrics`; cluster/grafana/capsdist.json draws them.
"""

from __future__ import annotations

from typing import NamedTuple

from ray.util.metrics import Gauge

from capsdist.train.metrics import Row

__all__ = ["GAUGES", "Gauges"]


class _Kind(NamedTuple):
    description: str
    tags: tuple[str, ...]


_OF_RUN, _OF_SPLIT = ("run",), ("run", "split")
GAUGES = {
    "capsdist_step": _Kind("Optimizer steps done", _OF_RUN),
    "capsdist_total_steps": _Kind("Optimizer steps of the whole run", _OF_RUN),
    "capsdist_images_per_s": _Kind("Images trained on a second, over all workers", _OF_RUN),
    "capsdist_step_time_s": _Kind("Seconds a step", _OF_RUN),
    "capsdist_loss": _Kind("Mean loss per image", _OF_SPLIT),
    "capsdist_error_percent": _Kind("Images whose predicted classes are not theirs, in percent", _OF_SPLIT),
    "capsdist_restarts": _Kind("How often the run was started again, by Ray or by hand", _OF_RUN),
}
"""The metrics by name; split is "train", "validation" or, at the end of a run, "test"."""


class Gauges:
    """On rank 0: call it with each row of the run `run`."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges = {
            name: Gauge(name, kind.description, tag_keys=kind.tags) for name, kind in GAUGES.items()
        }

    def __call__(self, row: Row, num_restarts: int) -> None:
        """Set what `row` tells; a number that is not there leaves the gauge as it was."""
        match row["kind"]:
            case "start":
                self._set("capsdist_restarts", num_restarts)
                self._set("capsdist_total_steps", row["total_steps"])
                self._set("capsdist_step", row["step"])
            case "train":
                for name in ("step", "images_per_s", "step_time_s"):
                    self._set(f"capsdist_{name}", row[name])
                self._set_split("train", row)
            case "validation" | "test" as split:
                self._set_split(split, row)

    def _set_split(self, split: str, row: Row) -> None:
        for name in ("loss", "error_percent"):
            if name in row:
                self._set(f"capsdist_{name}", row[name], split=split)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._gauges[name].set(value, {"run": self._run, **tags})
