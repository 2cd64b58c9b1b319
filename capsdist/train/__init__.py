"""Training: loop, step, checkpoints, engines. Names load on first use, so that importing is light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsdist.lazy import load_on_use

if TYPE_CHECKING:
    from capsdist.train.checkpoint import load_model
    from capsdist.train.loop import run_training

__all__ = ["load_model", "run_training"]

__getattr__ = load_on_use(
    __name__,
    {
        "load_model": ".checkpoint",
        "run_training": ".loop",
    },
)
