"""The roofline: whichever ceiling is lower decides."""

from __future__ import annotations

import pytest

from capsdist.bench.ceilings import Ceilings, check_place, measure_ceilings


@pytest.mark.parametrize(("flop", "num_bytes", "floor_s"), [(10, 1, 5.0), (1, 30, 3.0), (0, 0, 0.0)])
def test_the_slower_of_arithmetic_and_memory_is_the_floor(
    flop: float, num_bytes: float, floor_s: float
) -> None:
    assert Ceilings(flop_per_s=2, bytes_per_s=10).floor_s(flop, num_bytes) == floor_s


def test_both_ceilings_are_measured() -> None:
    found = measure_ceilings("cpu", budget_s=0)
    assert found.flop_per_s > 1e8
    assert found.bytes_per_s > 1e7


def test_nothing_to_measure_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_place("cpu", 1)
    with pytest.raises(SystemExit, match="no NVIDIA GPU; use --device cpu"):
        check_place("cuda", 1)
    with pytest.raises(SystemExit, match="num_images=0 must be at least 1"):
        check_place("cpu", 0)
