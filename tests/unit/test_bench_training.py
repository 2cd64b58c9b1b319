"""What the training benchmark measures is a training step of the preset; no figure is judged here."""

from __future__ import annotations

import pytest
import torch

from capsdist.bench.training import cpu_figures, describe_step, step_figures, step_rows


def test_a_row_for_each_number_of_iterations_and_the_figures_made_of_them() -> None:
    rows = step_rows("mnist_paper", num_images=1, iterations=(1, 2, 3), budget_s=0)
    assert [row["iterations"] for row in rows] == [1, 2, 3]
    assert all(row["images_per_s"] == pytest.approx(1 / row["median_s"]) for row in rows)
    figures = step_figures(rows)
    assert figures["step_r3_over_r1"] == rows[2]["median_s"] / rows[0]["median_s"]
    assert figures["routing_share"] == rows[2]["routing_share"] > 0
    assert all("images/s" in describe_step(row) for row in rows)


def test_figures_of_the_convolution_are_ratios_above_0() -> None:
    figures = cpu_figures(num_images=1, budget_s=0)
    assert set(figures) == {"convolution_speedup", "weight_gradient_speedup", "step_share_of_gemm_rate"}
    assert all(value > 0 for value in figures.values())


def test_a_step_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed changes every parameter: else it would be less than a step."""
    from capsdist.bench import training

    device = torch.device("cpu")
    step = training._Step("mnist_paper", 2, num_images=1, device=device, precision="fp32")
    before = {name: parameter.detach().clone() for name, parameter in step.model.named_parameters()}
    step()
    assert [name for name, value in step.model.named_parameters() if torch.equal(value, before[name])] == []
