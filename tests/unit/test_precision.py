"""Precision: what `auto` means on which processor, autocast, the rule of the loss scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from capsdist.errors import ConfigError
from capsdist.train.precision import LossScale, autocast, cpu_multiplies_bf16, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [("fpu avx2 amx_bf16", True), ("avx512_bf16 sse", True), ("avx2 avx512f bf16", False), ("", False)],
)
def test_the_flags_decide_on_a_cpu(tmp_path: Path, flags: str, bf16: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: amx_bf16\nflags\t\t: {flags}\n")
    assert cpu_multiplies_bf16(cpuinfo) is bf16


@pytest.mark.parametrize("text", [None, "processor : 0\nFeatures : bf16\n"])
def test_no_flags_mean_no_bf16(tmp_path: Path, text: str | None) -> None:
    if text:
        (tmp_path / "cpuinfo").write_text(text)
    assert cpu_multiplies_bf16(tmp_path / "cpuinfo") is False


def test_auto_follows_this_machines_flags() -> None:
    assert resolve_precision("auto", CPU) == ("bf16" if cpu_multiplies_bf16() else "fp32")


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_an_explicit_precision_stays(name: str) -> None:
    assert resolve_precision(name, CPU) == name


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^train\.precision='fp16': is for GPUs; use fp32 or bf16 on a CPU$"
    ):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("precision", "inputs", "products"),
    [
        ("fp32", torch.float32, torch.float32),
        ("fp32", torch.float64, torch.float64),
        ("bf16", torch.float32, torch.bfloat16),
    ],
)
def test_autocast_changes_products_only_where_asked(precision, inputs, products) -> None:
    a = torch.ones(3, 3, dtype=inputs)
    with autocast(precision, CPU):
        assert (a @ a).dtype == products


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_scale_is_that_of_torch(seed: int) -> None:
    ours = LossScale(scale=8.0, interval=3)
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)  # pyright: ignore[reportPrivateImportUsage]
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    generator = torch.Generator().manual_seed(seed)
    for overflow in (torch.rand(30, generator=generator) < 0.2).tolist():
        theirs.scale(weight.sum() * (float("inf") if overflow else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(overflow=overflow)
        state = theirs.state_dict()
        assert (ours.scale, ours.growth_tracker) == (state["scale"], state["_growth_tracker"])
