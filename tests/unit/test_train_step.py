"""Losses of a batch, their sums, and the seeds of dropout."""

from __future__ import annotations

import pytest
import torch

from capsdist.config import Loss, NoOptions
from capsdist.models import Output
from capsdist.models.registry import BASELINE_CNN, CAPSNET
from capsdist.ops import margin_loss
from capsdist.train.step import metric_names, metric_sums, microbatch_seed


def outputs(seed: int, batch: int = 5) -> tuple[Output, torch.Tensor, torch.Tensor]:
    """Scores, reconstructions, images and labels of a batch."""
    torch.manual_seed(seed)
    images, drawn = torch.rand(2, batch, 1, 3, 3)
    return Output(torch.rand(batch, 4), None, drawn), images, torch.randint(4, (batch,))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_total_is_margin_plus_weighted_reconstruction(seed: int) -> None:
    output, images, labels = outputs(seed)
    options = Loss(reconstruction_weight=0.02, m_plus=0.8, m_minus=0.2, absent_weight=0.3)
    losses = CAPSNET.losses(output, images, labels, options)
    margin = margin_loss(output.scores, labels, m_plus=0.8, m_minus=0.2, absent_weight=0.3)
    assert output.reconstructions is not None
    error = (output.reconstructions - images).square().sum((1, 2, 3))
    torch.testing.assert_close(losses["margin_loss"], margin)
    torch.testing.assert_close(losses["reconstruction_loss"], error)
    torch.testing.assert_close(losses["loss"], margin + 0.02 * error)
    # the mutant: a mean over pixels is another loss
    assert not torch.allclose(losses["loss"], margin + 0.02 * error / 9)


def test_without_a_decoder_the_total_is_the_margin() -> None:
    output, images, labels = outputs(0)
    losses = CAPSNET.losses(Output(output.scores), images, labels, Loss())
    assert torch.equal(losses["loss"], losses["margin_loss"])
    assert (losses["reconstruction_loss"] == 0).all()


def test_a_weight_of_zero_still_gives_the_decoder_a_gradient() -> None:
    output, images, labels = outputs(0)
    assert output.reconstructions is not None
    drawn = output.reconstructions.requires_grad_()
    losses = CAPSNET.losses(output, images, labels, Loss(reconstruction_weight=0.0))
    losses["loss"].sum().backward()
    assert drawn.grad is not None
    assert (drawn.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_baseline_has_cross_entropy_in_at_least_fp32(dtype: torch.dtype) -> None:
    output, images, labels = outputs(0)
    losses = BASELINE_CNN.losses(Output(output.scores.to(dtype)), images, labels, NoOptions())
    expected = torch.nn.functional.cross_entropy(output.scores.to(dtype).float(), labels, reduction="none")
    assert losses["loss"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(losses["loss"].float(), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_padding_counts_nowhere_in_the_sums(seed: int) -> None:
    output, images, labels = outputs(seed, batch=6)
    losses = CAPSNET.losses(output, images, labels, Loss())
    weights = torch.tensor([1.0, 1, 0, 1, 0, 1])
    real = weights.bool()
    found = metric_sums(CAPSNET, losses, output.scores, labels, weights).tolist()
    sums = dict(zip(metric_names(CAPSNET), found, strict=True))
    assert sums["num_images"] == 4
    assert sums["num_wrong"] == (output.scores.argmax(1) != labels)[real].sum().item()
    assert sums["loss"] == pytest.approx(losses["loss"][real].sum().item(), rel=1e-6)
    assert sums["margin_loss"] == pytest.approx(losses["margin_loss"][real].sum().item(), rel=1e-6)
    assert sums["reconstruction_loss"] == pytest.approx(
        losses["reconstruction_loss"][real].sum().item(), rel=1e-6
    )


def test_seeds_are_a_function_of_run_step_microbatch_and_rank() -> None:
    places = [
        (seed, step, part, rank)
        for seed in (0, 1)
        for step in (0, 1, 11)
        for part in (0, 1)
        for rank in (0, 1)
    ]
    seeds = [microbatch_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert seeds == [microbatch_seed(*place) for place in places]
    assert all(0 <= seed < 2**63 for seed in seeds)
