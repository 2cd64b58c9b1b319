"""Which faults a campaign injects: a fixed sample, or a number of them in an order that a seed decides."""

from __future__ import annotations

import random

from faults.script import Fault, Kind

__all__ = ["SAMPLES", "SLOTS", "random_faults"]

SAMPLES = (
    (
        Fault("error", 1, 13),
        Fault("tear", 0, 25),
        Fault("damaged_checkpoint", 0, 38),
        Fault("kill", 0, 38),
        Fault("kill", 1, 38),
    ),
    (Fault("shard_overwritten", 1, 13), Fault("frozen_worker", 0, 29)),
    (Fault("killed_build", 0, 0), Fault("kill", 1, 23)),
)
"""The scripts of `--goals`, a run each; a run with `killed_build` trains with ZeRO."""

SLOTS = 6
"""Faults that a run of `tiny.CAMPAIGN_EPOCHS` epochs has room for."""
_DRAWN: tuple[Kind, ...] = ("error", "kill", "tear", "damaged_checkpoint", "stop", "driver")
_FIRST, _GAP = 12, 9  # steps: two checkpoints are there, and another one in every attempt


def random_faults(seed: int, num: int, *, ranks: int, checkpoint_every: int) -> list[tuple[Fault, ...]]:
    """Return `num` faults as scripts of runs, each with at most `SLOTS`; equal seeds give equal scripts.

    All kinds take part in turn, in an order that the seed shuffles.
    """
    draw = random.Random(seed)
    scripts: list[tuple[Fault, ...]] = []
    kinds: list[Kind] = []
    while (left := num - sum(map(len, scripts))) > 0:
        script: list[Fault] = []
        for slot in range(SLOTS):
            if len(script) == min(left, SLOTS):
                break
            kinds = kinds or draw.sample(_DRAWN, k=len(_DRAWN))
            kind = kinds.pop()
            step = _FIRST + slot * _GAP + draw.randrange(4)
            rank = draw.randrange(ranks) if kind in ("error", "kill", "damaged_checkpoint") else 0
            if kind == "tear":
                step += -step % checkpoint_every
            if kind == "damaged_checkpoint":
                step += step % checkpoint_every == 0  # no checkpoint is being written then
                if len(script) + 2 > min(left, SLOTS):  # no room for the death that belongs to it
                    continue
                script.append(Fault("damaged_checkpoint", rank, step))
                kind = "kill"
            script.append(Fault(kind, rank, step))
        scripts.append(tuple(script))
    return scripts
