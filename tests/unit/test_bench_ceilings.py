"""The roofline: whichever ceiling is lower decides."""

from __future__ import annotations

import math

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cuda", 1, 1.0, "float32"), "finds no NVIDIA GPU; use --device cpu"),
        (("cpu", 0, 1.0, "float32"), "num_images=0 must be at least 1"),
        (("cpu", 1, 1.0), "there is no dtype to measure"),
        (
            ("cpu", 1, 1.0, "float32", "float16"),
            "float16 is for GPUs; on a CPU measure in float32 or bfloat16",
        ),
        (("cpu", 1, 1.0, "fp16"), "fp16 is for GPUs; on a CPU measure in fp32 or bf16"),
        (("cpu", 1, math.nan, "float32"), "budget_s=nan must be"),
        (("cpu", 1, -1.0, "float32"), "budget_s=-1.0 must be"),
    ],
)
def test_what_cannot_be_measured_ends_in_one_line(
    arguments: tuple, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_place("cpu", 1, 0.0, "float32", "bfloat16")
    with pytest.raises(SystemExit) as ended:
        check_place(*arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
