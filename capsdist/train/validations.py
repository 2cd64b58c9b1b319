"""The validations of a run: what its checkpoints keep of them, and whether they end it early."""

from __future__ import annotations

import math
from collections.abc import Mapping

from capsdist.config.schema import Train
from capsdist.train.evaluate import Evaluation

__all__ = ["Validations"]

_LOWEST, _SINCE = "lowest_error_percent", "validations_since_lowest"


class Validations:
    """The validations of a run so far; last: the newest of this start."""

    def __init__(self, train: Train) -> None:
        self.last: Evaluation | None = None
        self._train, self._step = train, 0
        self._lowest, self._since = math.inf, 0

    def add(self, found: Evaluation, step: int) -> None:
        """Take in the validation after `step` steps; an equal error is no improvement."""
        self.last, self._step = found, step
        error = found.get("error_percent", math.inf)  # of a family that does not classify there is none
        self._since = 0 if error < self._lowest else self._since + 1
        self._lowest = min(self._lowest, error)

    @property
    def end(self) -> str | None:
        """Why they end the run (`train.stop_at_error`, `train.patience`), None if it continues."""
        bound, patience = self._train.stop_at_error, self._train.patience
        if bound is not None and self._lowest <= bound:
            return f"validated error_percent {self._lowest:.4g} is at most train.stop_at_error={bound:g}"
        if patience is not None and self._since >= patience:
            return f"{self._since} validations without a lower error_percent (train.patience={patience})"
        return None

    def metrics(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        metrics: dict[str, float] = {}
        if self.last is not None:
            if "error_percent" in self.last:
                metrics["error_percent"] = self.last["error_percent"]
            metrics["loss"] = self.last["loss"]
            metrics["validated_step"] = self._step
        if math.isfinite(self._lowest):
            metrics |= {_LOWEST: self._lowest, _SINCE: self._since}
        return metrics

    def resume(self, metrics: Mapping[str, float]) -> None:
        """Continue after the validations of a checkpoint with these `metrics`."""
        self._lowest = metrics.get(_LOWEST, metrics.get("error_percent", math.inf))
        self._since = int(metrics.get(_SINCE, 0))
