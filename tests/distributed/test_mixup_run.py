"""Training on mixed images: its first loss by hand, and the same losses on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import losses, run_small, small_config

from capsdist.config import Config, validate
from capsdist.config.models import find_family
from capsdist.train.engine.plain import PlainEngine
from capsdist.train.parts import build_parts


def mixed_config(root: Path, **train: Any) -> Config:
    config = small_config(root, **train)
    return validate(config.model_copy(update={"data": config.data.model_copy(update={"mixup": 0.5})}))


@pytest.mark.parametrize("kind", ["capsnet", "baseline_cnn"])
def test_the_first_loss_is_the_weighted_mean_of_both_labels(shapes: Path, tmp_path: Path, kind: str) -> None:
    config = mixed_config(shapes, kind=kind, max_steps=1)
    if kind == "capsnet":  # a decoder sees the capsules of both classes at once
        model = config.model.model_copy(update={"decoder": False})
        config = config.model_copy(update={"model": model})
    else:
        model = config.model.model_copy(update={"dropout": 0.0})
        config = config.model_copy(update={"model": model})
    parts = build_parts(config, rank=0, world_size=1, device=torch.device("cpu"))
    assert isinstance(parts.engine, PlainEngine)
    batch, seed = next(iter(parts.stream.epoch(0))), config.train.seed
    assert batch.partner is not None
    assert parts.mixup is not None
    own = parts.transform(batch.images, batch.sample_ids, seed, 0)
    after = own.roll(-1, 0)
    weights = parts.mixup.weights(batch.sample_ids, seed, 0)
    mixed = torch.stack([w * x + (1 - w) * y for w, x, y in zip(weights, own, after, strict=True)])
    output, family = parts.engine.forward(mixed, batch.labels), find_family(kind)
    both = [
        family.losses(output, mixed, y, config.loss)["loss"] for y in (batch.labels, batch.labels.roll(-1))
    ]
    expected = (weights * both[0] + (1 - weights) * both[1]).mean().item()
    [first] = losses(run_small(config, tmp_path))
    assert first == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["capsnet", "baseline_cnn", "resnet_capsnet"])
def test_ranks_and_microbatches_mix_alike(shapes: Path, tmp_path: Path, on_ranks: Any, kind: str) -> None:
    def run(name: str, world_size: int, **options: Any) -> list[float]:
        config = mixed_config(shapes, kind=kind, epochs=1, **options)
        if kind == "baseline_cnn":
            model = config.model.model_copy(update={"dropout": 0.0})
            config = config.model_copy(update={"model": model})
        return losses(on_ranks(world_size, run_small, config, tmp_path / name))

    alone = run("alone", 1)
    assert len(alone) == 4
    np.testing.assert_allclose(run("parts", 1, gradient_accumulation_steps=3), alone, rtol=1e-4)
    np.testing.assert_allclose(run("ranks", 2, num_workers=2), alone, rtol=1e-4)
    plain = losses(run_small(small_config(shapes, kind=kind, epochs=1), tmp_path / "plain"))
    assert plain != alone
