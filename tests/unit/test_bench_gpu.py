"""The named figures of a GPU come from the right rows."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capsdist.bench import gpu_loop, gpu_presets
from capsdist.bench.gpu import figures, routing_cases
from capsdist.bench.gpu_aims import GPU_ROWS
from capsdist.config import get_preset
from capsdist.data import Transform
from capsdist.models.registry import CAPSNET
from capsdist.train.program import StepProgram

MNIST, IMAGENET = "B=1024 I=1152 J=10 R=3", "B=256 I=6272 J=1000 R=3"


def row(sizes: str, backend: str, microseconds: float) -> dict:
    return {
        "sizes": sizes,
        "backend": backend,
        "microseconds": microseconds,
        "share_of_roofline": 1 / microseconds,
        "peak_gib": 7.0,
    }


FOUND = {
    "routing": [
        row("B=128 I=1152 J=10 R=3", "fused", 1.0),
        row(MNIST, "fused", 10.0),
        row(MNIST, "fused, launched early", 8.0),
        row(MNIST, "reference", 160.0),
        row(IMAGENET, "fused", 5000.0),
        {"sizes": IMAGENET, "backend": "reference", "error": "out of memory"},
    ],
    "loop": [
        {"preset": "mnist_paper", "num_images": 128, "images_per_s": 1.0, "step_r3_over_r1": 1.5},
        {"preset": "mnist_paper", "num_images": 1024, "images_per_s": 2.0, "step_r3_over_r1": 1.25},
        {"preset": "cifar10_official", "num_images": 512, "images_per_s": 3.0, "mfu_percent": 4.0},
    ],
}


def test_figures_are_those_of_the_faster_fused_backend_and_of_each_network_and_batch() -> None:
    found = figures(FOUND)
    rows = found.pop("rows")
    assert rows is FOUND
    assert found == {
        "speedup_vs_reference": 20.0,
        "share_of_roofline": 1 / 8,
        "imagenet_ms": 5.0,
        "imagenet_peak_gib": 7.0,
        "mnist_b128_images_per_s": 1.0,
        "mnist_b1024_images_per_s": 2.0,
        "cifar10_b512_images_per_s": 3.0,
        "cifar10_b512_mfu_percent": 4.0,
        "step_r3_over_r1": 1.25,
    }


def test_what_was_not_measured_is_left_out() -> None:
    without = {"routing": FOUND["routing"][-1:], "loop": []}
    assert figures(without) == {"rows": without}


def test_every_aim_is_a_figure_of_what_is_measured() -> None:
    """A row of the table that no measurement names would say "not run" for ever."""
    measured = {
        f"{preset.partition('_')[0]}_b{num_images}_{name}"
        for preset, num_images, _ in gpu_loop._SUBJECTS
        for name in ("images_per_s", "mfu_percent")
    }
    of_routing = {"speedup_vs_reference", "share_of_roofline", "imagenet_ms", "imagenet_peak_gib"}
    assert {row.figure for row in GPU_ROWS} <= measured | of_routing | {"step_r3_over_r1"}


def test_the_shapes_of_the_figures_are_measured() -> None:
    sizes = {
        f"B={case.num_images} I={case.num_children} J={case.num_parents} R={case.iterations}"
        for case in routing_cases("cuda")
    }
    assert {MNIST, IMAGENET} <= sizes


@pytest.mark.parametrize("preset", gpu_presets.PRESETS)
def test_its_configuration_is_the_preset(preset: str) -> None:
    """It is stored, because the machine has no pydantic."""
    file = Path(gpu_presets.__file__).with_name("gpu_presets.json")
    stored, expected = json.loads(file.read_text())[preset], get_preset(preset).model_dump(mode="json")
    for section, fields in stored.items():
        assert fields == {name: expected[section][name] for name in fields}
    for section in ("model", "routing", "loss", "optim"):
        assert stored[section].keys() == expected[section].keys()
    assert stored["data"].keys() == {field.name for field in dataclasses.fields(Transform)} - {"train"}
    assert CAPSNET.loss_names == gpu_presets.FAMILY.loss_names


@pytest.mark.slow
def test_the_loop_runs_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps are those of the program that training runs, over the resident set."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("CAPSDIST_TUNE", "0")
    rows = list(gpu_loop.loop_rows("cpu"))
    assert [(row["preset"], row["variant"]) for row in rows] == [
        ("mnist_paper", "nchw"),
        ("cifar10_official", "nchw"),
    ]
    assert all(row["images_per_s"] > 0 and "error" not in row for row in rows)
    loop = gpu_loop.GpuLoop("mnist_paper", 2, 1, "cpu")
    assert isinstance(loop._run, StepProgram)
    before = [parameter.detach().clone() for parameter in loop.work.engine.model.parameters()]
    assert loop.window(1).num_images == 2
    after = loop.work.engine.model.parameters()
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert loop.flop_per_image() > 0


def test_a_short_training_runs_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("CAPSDIST_TUNE", "0")
    row = gpu_loop.train_briefly("cpu")
    assert row["num_steps"] == 2
    assert 0 <= row["error_percent"] <= 100


def test_a_python_without_torch_is_told_in_one_line(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('as if it were not installed')")
    done = subprocess.run(
        [sys.executable, repo / "jobs/gpu.py"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "has no torch: nothing was run; name a Python with torch" in line
