"""The named figures of a GPU come from the right rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capsdist.bench import gpu
from capsdist.bench import step as steps
from capsdist.bench.gpu import figures, preset_step, routing_cases, train_briefly
from capsdist.config import get_preset
from capsdist.models.registry import CAPSNET

MNIST, IMAGENET = "B=1024 I=1152 J=10 R=3", "B=256 I=6272 J=1000 R=3"


def row(sizes: str, backend: str, microseconds: float) -> dict:
    return {
        "sizes": sizes,
        "backend": backend,
        "microseconds": microseconds,
        "share_of_roofline": 1 / microseconds,
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
    "training_step": [{"images_per_s": 1.0}, {"images_per_s": 2.0, "step_r3_over_r1": 1.25}],
}


def test_figures_are_those_of_the_faster_fused_backend_and_the_largest_batch() -> None:
    found = figures(FOUND)
    rows = found.pop("rows")
    assert rows is FOUND
    assert found == {
        "speedup_vs_reference": 20.0,
        "share_of_roofline": 1 / 8,
        "imagenet_ms": 5.0,
        "images_per_s": 2.0,
        "step_r3_over_r1": 1.25,
    }


def test_what_was_not_measured_is_left_out() -> None:
    without = {"routing": FOUND["routing"][-1:], "training_step": [{"images_per_s_r1": 3.0}]}
    assert figures(without) == {"rows": without}


def test_the_shapes_of_the_figures_are_measured() -> None:
    sizes = {
        f"B={case.num_images} I={case.num_children} J={case.num_parents} R={case.iterations}"
        for case in routing_cases("cuda")
    }
    assert {MNIST, IMAGENET} <= sizes


def test_its_configuration_is_the_preset() -> None:
    """It is stored, because the machine has no pydantic."""
    file = Path(gpu.__file__).with_name("mnist_paper.json")
    stored, preset = json.loads(file.read_text()), get_preset("mnist_paper").model_dump(mode="json")
    train = {
        name: preset["train"][name] for name in ("gradient_accumulation_steps", "microbatch_size", "seed")
    }
    sections = {name: preset[name] for name in ("model", "routing", "loss", "optim")}
    assert stored == sections | {"train": train}
    assert CAPSNET.loss_names == gpu.FAMILY.loss_names


def test_its_step_is_that_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("CAPSDIST_TUNE", "0")
    step, stepped = preset_step(2, 1, "cpu"), []
    train_step = steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda *given: stepped.append(given) or train_step(*given))
    before = [parameter.detach().clone() for parameter in step.engine.model.parameters()]
    sums = step()
    assert [(given[0], given[5]) for given in stepped] == [(step.engine, 0)]
    assert sums[-1] == 2
    after = step.engine.model.parameters()
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_short_training_runs_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("CAPSDIST_TUNE", "0")
    row = train_briefly("cpu")
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
