"""Images that are not square: packed, cropped, trained on, evaluated, predicted and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import CLASSES

import capsdist
from capsdist.analysis.overview import pick_samples
from capsdist.config import BaselineCNNConfig, CapsNetConfig, Config, Data, Optim, Routing, Train, validate
from capsdist.data import Split, Transform, write_split
from capsdist.errors import DataError, ShapeError
from capsdist.models import build_model
from capsdist.models.counts import num_parameters
from capsdist.runs.retention import checkpoint_name
from capsdist.train.checkpoint import load_model
from capsdist.train.evaluate import evaluate_checkpoint
from capsdist.train.loop import run_training

STORED, SEEN = (2, 12, 17), (10, 15)
CROPPED = {"stored": STORED, "image_size": SEEN, "crop": SEEN}
WHOLE = {"stored": (2, *SEEN), "image_size": SEEN, "crop": 0}
CASES = {"cropped": CROPPED, "whole": WHOLE}


def wide_model(image_size: Any = SEEN, **options: Any) -> CapsNetConfig:
    """A small capsule network for images with two channels."""
    sizes = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 3, "primary_dim": 2, "primary_kernel": 3}
    shape = {"in_channels": 2, "image_size": image_size, "num_classes": 3, "class_dim": 5}
    return CapsNetConfig.model_validate({**sizes, **shape, "decoder_hidden": (7, 9), **options})


def write_bars(root: Path, shape: tuple[int, ...]) -> None:
    """Write splits of images whose class is where a bar stands: left, in the middle or right."""
    generator = np.random.default_rng(2)
    for split, number in (("train", 60), ("test", 21)):
        labels = np.arange(number) % 3
        images = generator.integers(0, 60, (number, *shape), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, :, 3 + 4 * label : 5 + 4 * label] |= 0xC0
        write_split(root / "bars" / split, images, labels, classes=CLASSES, block_size=8, shard_size=20)


def bars_config(root: Path, image_size: Any, crop: Any) -> Config:
    return validate(
        Config(
            model=wide_model(image_size),
            data=Data(name="bars", root=str(root), lanes=2, window=16, shift=1, crop=crop),
            optim=Optim(learning_rate=0.02),
            train=Train(name="bars", epochs=4, global_batch_size=8, precision="fp32", seed=1),
        )
    )


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Config, rows, pictures and checkpoint of a run on rectangular images."""
    case, root = CASES[request.param], tmp_path_factory.mktemp("bars")
    write_bars(root, case["stored"])
    config, rows, pictures = bars_config(root, case["image_size"], case["crop"]), [], []
    saved = root / "runs"

    def save(write: Callable[[Path], None], step: int, metrics: dict[str, float]) -> str:
        write(saved / checkpoint_name(step))
        return checkpoint_name(step)

    run_training(
        config,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        events=rows.append,
        save=save,
        picture=lambda name, pixels, step: pictures.append(pixels),
    )
    return config, rows, pictures, max(saved.iterdir())


def test_it_learns_and_is_evaluated_alike(trained: Any) -> None:
    config, rows, _, checkpoint = trained
    assert rows[0]["num_parameters"] == num_parameters(config)
    assert rows[-1]["error_percent"] < 34  # two of three by chance
    stored, result = evaluate_checkpoint(checkpoint, device="cpu")
    assert stored.model.image_size == SEEN
    assert result["error_percent"] == rows[-1]["error_percent"]


def test_reconstructions_are_drawn_in_the_shape_of_the_images(trained: Any) -> None:
    _, _, pictures, _ = trained
    assert [each.shape for each in pictures] == [(2 * SEEN[0], 8 * SEEN[1], 3)] * 4
    assert pictures[-1].std() > 0


def test_samples_of_the_overview_have_that_shape(trained: Any) -> None:
    config, _, _, checkpoint = trained
    _, network = load_model(checkpoint)
    samples = pick_samples(config, network, f"{config.data.root}/bars/test", num_columns=6)
    assert samples.images.shape == (6, *SEEN)
    assert samples.reconstructions is not None
    assert samples.reconstructions.shape == (6, *SEEN)


def test_it_predicts_what_the_evaluation_says(trained: Any) -> None:
    config, rows, _, checkpoint = trained
    split = Split(f"{config.data.root}/bars/test")
    images, labels = split.gather(np.arange(split.index.num_samples))
    network = capsdist.load(checkpoint)
    found = network.predict(images)
    assert 100 * (found.labels.numpy() != labels).mean() == pytest.approx(rows[-1]["error_percent"])
    assert network.reconstruct(images[:2]).shape == (2, 2, *SEEN)
    with pytest.raises(ShapeError, match=r"is 15 x 10 pixels; resize it to (at least )?10 x 15$"):
        network.predict(np.zeros((2, 15, 10), np.uint8))


def test_other_images_are_refused(trained: Any, tmp_path: Path) -> None:
    _, _, _, checkpoint = trained
    write_bars(tmp_path, (2, 15, 10))
    with pytest.raises(DataError, match=r"2 x 15 x 10 \(C x H x W\), (the model|smaller than the crop 10 x)"):
        evaluate_checkpoint(checkpoint, tmp_path / "bars" / "test", device="cpu")


@pytest.mark.parametrize("backend", ["streamed", "fused"])
def test_backends_of_routing_agree(backend: str) -> None:
    """The fused kernels run under Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for name in ("reference", backend):
        torch.manual_seed(4)
        routing = Routing.model_validate({"backend": name, "iterations": 3})
        network = build_model(wide_model(), routing).to(device)
        images = torch.rand(3, 2, *SEEN, generator=torch.Generator().manual_seed(1)).to(device)
        output = network(images, torch.tensor([0, 2, 1], device=device))
        (output.scores.sum() + output.reconstructions.square().sum()).backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        found.append([output.scores, output.reconstructions, *gradients])
    for expected, result in zip(*found, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_the_baseline_takes_them_too() -> None:
    model = BaselineCNNConfig(image_size=SEEN, num_classes=3)
    network = build_model(model, Config(model=model).routing).eval()
    assert network(torch.rand(2, 1, *SEEN)).scores.shape == (2, 3)
    square = num_parameters(Config(model=BaselineCNNConfig(image_size=10, num_classes=3)))
    assert num_parameters(Config(model=model)) - square == 128 * 10 * 5 * 328


@pytest.mark.parametrize("crop", [(4, 6), (7, 3), (9, 7)])
def test_crops_are_taken_side_by_side(crop: tuple[int, int]) -> None:
    images = torch.randint(1, 256, (200, 2, 9, 7), dtype=torch.uint8)
    found = Transform(crop=crop)(images, torch.arange(200), 1, 2)
    places = set()
    for image, part in zip(images.float() / 255, found, strict=True):
        windows = image.unfold(1, crop[0], 1).unfold(2, crop[1], 1).permute(1, 2, 0, 3, 4)
        [place] = (windows == part).flatten(2).all(2).nonzero().tolist()
        places.add(tuple(place))
    assert places == {(top, left) for top in range(10 - crop[0]) for left in range(8 - crop[1])}
    top, left = (9 - crop[0]) // 2, (7 - crop[1]) // 2
    central = images[:, :, top : top + crop[0], left : left + crop[1]].float() / 255
    assert torch.equal(Transform(crop=crop, train=False)(images, torch.arange(200), 1, 2), central)


def test_a_crop_larger_than_a_side_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[1, 1, 9, 7\], smaller than the crop 4 x 8; lower data.crop"):
        Transform(crop=(4, 8))(torch.zeros(1, 1, 9, 7, dtype=torch.uint8), torch.arange(1), 0, 0)
