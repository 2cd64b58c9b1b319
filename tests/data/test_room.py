"""`Room` returns the rows that were put, whatever was put and released before."""

from __future__ import annotations

import numpy as np
import pytest

from capsdist.data.format.fields import Field
from capsdist.data.format.room import Room

FIELDS = (Field("image", "|u1", (2, 3, 5)), Field("label", "<i8"))


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_all_shards_are_taken_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    room, held = Room(FIELDS, 7, 3), {}
    for _ in range(20):
        if room.is_full:
            first = rng.choice(list(held))
            room.release(int(first))
            del held[first]
        sizes = rng.integers(1, 4, 2)
        blocks = [
            {"image": rng.integers(0, 256, (n, 2, 3, 5), dtype=np.uint8), "label": rng.integers(0, 10, n)}
            for n in sizes
        ]
        held[room.put(blocks)] = blocks
        rows, images, labels = [], [], []
        for first, parts in held.items():
            rows += [first + row for row in range(sum(len(part["label"]) for part in parts))]
            images += [part["image"] for part in parts]
            labels += [part["label"] for part in parts]
        order = rng.permutation(len(rows))
        out = {"image": np.empty((len(rows), 2, 3, 5), np.uint8), "label": np.empty(len(rows), np.int64)}
        room.take(np.array(rows)[order], out)
        assert np.array_equal(out["image"], np.concatenate(images)[order])
        assert np.array_equal(out["label"], np.concatenate(labels)[order])
