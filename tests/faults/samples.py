"""Which faults a campaign injects: a fixed sample, or a number of them in an order that a seed decides."""

from __future__ import annotations

import random

from faults.script import Fault, Kind

__all__ = ["SAMPLE", "SLOTS", "random_faults"]

# Three deaths of workers and five faults: what a minute on two cores can hold.
SAMPLE = (
    Fault("error", 1, 13),
    Fault("tear", 0, 25),
    Fault("damage", 0, 38),
    Fault("kill", 0, 38),
    Fault("kill", 1, 38),
)

SLOTS = 6
"""Faults that a run of `tiny.CAMPAIGN_EPOCHS` epochs has room for."""
_DRAWN: tuple[Kind, ...] = ("error", "kill", "tear", "damage", "stop", "driver")
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
            rank = draw.randrange(ranks) if kind in ("error", "kill", "damage") else 0
            if kind == "tear":
                step += -step % checkpoint_every
            if kind == "damage":
                step += step % checkpoint_every == 0  # no checkpoint is being written then
                if len(script) + 2 > min(left, SLOTS):  # no room for the death that belongs to it
                    continue
                script.append(Fault("damage", rank, step))
                kind = "kill"
            script.append(Fault(kind, rank, step))
        scripts.append(tuple(script))
    return scripts
