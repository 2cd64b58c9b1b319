"""TensorBoard's event files in `tensorboard/`: curves, hyper-parameters and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsdist.runs.loggers.base import LoggedRun, Logger, curves, hyperparameters
from capsdist.storage.durable import make_way
from capsdist.train.metrics import Row

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardLogger"]

_FOLDER = "tensorboard"
_COMPARED = ("validation/error_percent", "validation/loss", "test/error_percent")
"""Curves that the table of hyper-parameters shows."""


class TensorBoardLogger(Logger):
    """Writes event files. What a crashed attempt has written of later steps is hidden by a purge step."""

    def __init__(self, run: LoggedRun) -> None:
        self._run = run
        self._writer: SummaryWriter | None = None

    def log(self, row: Row) -> None:
        """Write the curves of one row; a `start` row begins a new event file."""
        if row["kind"] == "start":
            self._start(row["resumed_step"])
        if self._writer:
            for name, value in curves(row).items():
                self._writer.add_scalar(name, value, row["step"])
            if row["kind"] in ("validation", "test"):
                self._writer.flush()

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Write a picture."""
        if self._writer:
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def _start(self, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late: it takes a second to import
        from torch.utils.tensorboard.summary import hparams

        self.close()
        folder = self._run.folder / _FOLDER
        make_way(folder, fits=folder.is_dir(), wanted="a folder", log=self._run.log)
        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)
        # `add_hparams` would begin a run of TensorBoard of its own
        file_writer = self._writer.file_writer
        assert file_writer is not None
        for summary in hparams(hyperparameters(self._run.config), dict.fromkeys(_COMPARED)):
            file_writer.add_summary(summary)

    def flush(self) -> None:
        """Have all events in the file."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._writer:
            self._writer.close()
