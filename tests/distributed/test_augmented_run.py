"""Runs with all augmentations but mixup: any number of ranks, resume, evaluation and prediction agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import losses, run_small, same_checkpoint, small_config, without_times

import capsdist
from capsdist.config import Config, Data, validate
from capsdist.data import Split
from capsdist.runs.retention import checkpoint_name
from capsdist.train.evaluate import evaluate_checkpoint

SIZE = (11, 10)  # larger than the stored images, 9 x 9
AUGMENTED: dict[str, Any] = {
    "shift": 1, "flip": True, "resize": SIZE, "resize_area": (0.6, 1.0), "resize_ratio": (0.8, 1.25),
    "rotation": 10.0, "translation": 0.5, "scale": (0.9, 1.1), "shear": 5.0, "brightness": 20.0,
    "contrast": (0.8, 1.2), "cutout": 2, "normalise_mean": (0.2,), "normalise_std": (0.3,),
}  # fmt: skip


def augmented_config(root: Path, **train: Any) -> Config:
    config = small_config(root, **train)
    model = config.model.model_copy(update={"image_size": SIZE, "decoder": False})
    data = Data(name="shapes", root=str(root), lanes=2, window=16, last_batch="carry", **AUGMENTED)
    return validate(config.model_copy(update={"model": model, "data": data}))


def test_ranks_and_microbatches_train_alike(shapes: Path, tmp_path: Path, on_ranks: Any) -> None:
    [alone, parts, ranks] = [
        losses(on_ranks(world_size, run_small, augmented_config(shapes, **options), tmp_path / name))
        for name, world_size, options in (
            ("alone", 1, {}),
            ("parts", 1, {"gradient_accumulation_steps": 3}),
            ("ranks", 2, {"num_workers": 2}),
        )
    ]
    assert len(alone) == 10  # 3 epochs of 26 images, 8 a step
    np.testing.assert_allclose(parts, alone, rtol=1e-4)
    np.testing.assert_allclose(ranks, alone, rtol=1e-4)


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_run_is_the_uninterrupted_one(shapes: Path, tmp_path: Path, stop: int) -> None:
    config = augmented_config(shapes)
    whole = run_small(config, tmp_path / "whole")
    run_small(config, tmp_path / "cut", stop_at=stop)
    rest = run_small(config, tmp_path / "cut", resume_from=tmp_path / "cut" / f"step-{stop:04d}")
    [expected, found] = [
        [row for row in without_times(rows) if row["kind"] == "train"] for rows in (whole, rest)
    ]
    assert found == expected[-len(found) :]
    last = max(path.name for path in (tmp_path / "whole").iterdir())
    assert same_checkpoint(tmp_path / "whole" / last, tmp_path / "cut" / last)


def test_evaluation_and_prediction_see_the_same_images(shapes: Path, tmp_path: Path) -> None:
    rows = run_small(augmented_config(shapes, learning_rate=0.05), tmp_path)
    saved = max(tmp_path.iterdir())
    checkpoint = saved.rename(tmp_path / checkpoint_name(int(saved.name.removeprefix("step-"))))
    _, result = evaluate_checkpoint(checkpoint, device="cpu")
    assert result["error_percent"] == rows[-1]["error_percent"]
    network = capsdist.load(checkpoint)
    images, labels = Split(shapes / "shapes" / "test").gather(np.arange(12))
    found = network.predict(images)
    assert 100 * (found.labels.numpy() != labels).mean() == pytest.approx(result["error_percent"])
    twice = torch.from_numpy(images).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert network.predict(twice).scores.shape == (12, 3)  # any size is resized
