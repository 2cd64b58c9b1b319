"""Weights & Biases, as its own variables say: WANDB_API_KEY, WANDB_MODE=offline, WANDB_PROJECT and others."""

from __future__ import annotations

import os
import uuid
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from capsdist.config import Config
from capsdist.errors import Problem
from capsdist.runs.loggers.base import LoggedRun, Logger, curves
from capsdist.train.metrics import Row

if TYPE_CHECKING:
    import numpy as np

__all__ = ["WandbLogger"]


class WandbLogger(Logger):
    """Logs curves, the configuration and pictures; a run that goes on keeps its identifier.

    Steps that an attempt logs again are dropped by Weights & Biases, whose steps only grow.
    """

    def __init__(self, run: LoggedRun) -> None:
        self._run = run
        self._session: Any = None
        self._ended = False

    @classmethod
    def problem(cls, config: Config) -> Problem | None:
        """Return what is missing: the package."""
        if find_spec("wandb"):
            return None
        fix = "pip install 'capsdist[wandb]', or leave it out"
        return Problem("train.loggers", "wandb", "the package wandb is not installed", fix)

    def log(self, row: Row) -> None:
        """Log the curves of one row."""
        if row["kind"] == "start":
            self._start(row)
        self._ended = row["kind"] == "end"
        if values := curves(row):
            self._session.log(values, step=row["step"])

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Log a picture."""
        import wandb

        self._session.log({name: wandb.Image(pixels)}, step=step)

    def _start(self, row: Row) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own reports to its makers
        import wandb

        self.close()
        self._session = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "capsdist"),
            name=self._run.name,
            id=self._run.identifier("wandb", row, lambda: uuid.uuid4().hex),
            resume="allow",
            dir=str(self._run.folder),
            config=self._run.config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def close(self) -> None:
        """Finish, as failed where no `end` row came."""
        if self._session:
            import wandb

            self._session.finish(exit_code=0 if self._ended else 1)
            self._session = None
            wandb.teardown()  # waits until its own process has written everything
