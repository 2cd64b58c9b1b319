"""The helper that runs functions on ranks: results in order, and every way of failing told apart."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, Ranks


def total_of_ranks() -> float:
    value = torch.tensor(float(dist.get_rank()))
    dist.all_reduce(value)
    return value.item() + 10 * dist.get_rank()


def fail_each_in_its_way() -> None:
    if dist.get_rank() == 0:
        raise ValueError("scripted")
    if dist.get_rank() == 1:
        os._exit(9)
    time.sleep(600)


def test_results_come_in_the_order_of_ranks(ranks) -> None:
    assert ranks(2).run(total_of_ranks) == [1.0, 11.0]
    assert ranks(2).run(total_of_ranks) == [1.0, 11.0]


def test_a_rank_that_raises_dies_or_hangs_is_named() -> None:
    with Ranks(3) as three, pytest.raises(RankError) as error:
        three.run(fail_each_in_its_way)
    lines = str(error.value)
    assert "rank 0: Traceback" in lines
    assert "ValueError: scripted" in lines
    assert "rank 1: died with exit code 9" in lines
    assert "rank 2: still running" in lines
    assert three.closed
