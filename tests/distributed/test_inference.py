"""A loaded network predicts what evaluation says of the same images, however they are given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import CLASSES, run_small, small_config

import capsdist
from capsdist.data import Split
from capsdist.errors import CheckpointError, ConfigError, DataError, ShapeError
from capsdist.inference import Predictor
from capsdist.runs.retention import checkpoint_name
from capsdist.train.evaluate import evaluate_checkpoint


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run that has trained."""
    folder = tmp_path_factory.mktemp("run")
    run_small(small_config(shapes, learning_rate=0.05), folder)
    for path in list(folder.iterdir()):
        path.rename(folder / checkpoint_name(int(path.name.removeprefix("step-"))))
    return folder


@pytest.fixture(scope="module")
def network(run: Path) -> Predictor:
    return capsdist.load(run)


@pytest.fixture(scope="module")
def tested(shapes: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the test split."""
    split = Split(shapes / "shapes" / "test")
    return split.gather(np.arange(split.index.num_samples))


def test_predictions_are_those_of_the_evaluation(run: Path, network: Predictor, tested: Any) -> None:
    images, labels = tested
    found = network.predict(images, batch_size=5)
    _, expected = evaluate_checkpoint(max(run.glob("step_*")), device="cpu")
    assert 100.0 * (found.labels.numpy() != labels).mean() == pytest.approx(expected["error_percent"])
    assert found.names == [CLASSES[label] for label in found.labels]
    assert found.poses is not None
    torch.testing.assert_close(found.poses.norm(dim=-1), found.scores)
    assert tuple(found.poses.shape) == (len(images), 3, 5)


def test_images_may_be_given_in_many_ways(network: Predictor, tested: Any, tmp_path: Path) -> None:
    images = tested[0][:3]
    expected = network.predict(images).scores
    for number, image in enumerate(images):
        Image.fromarray(image[0]).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    ways: list[Any] = [
        torch.from_numpy(images), images[:, 0], list(images), [image[0] for image in images], paths,
        [str(path) for path in paths], [paths[0], images[1], torch.from_numpy(images[2])],
    ]  # fmt: skip
    for way in ways:
        assert torch.equal(network.predict(way).scores, expected)
    torch.testing.assert_close(network.predict(images.astype(np.float64) / 255).scores, expected)
    for one in (images[0], images[0][0], paths[0], str(paths[0])):
        torch.testing.assert_close(network.predict(one).scores, expected[:1])


REFUSED = [
    (np.zeros((1, 8, 9), np.uint8), "images is 8 x 9 pixels; resize it to 9 x 9"),
    (np.zeros((2, 3, 9, 9), np.uint8), "has shape [2, 3, 9, 9]; give [C, H, W] or [B, C, H, W] with C=1"),
    (np.zeros((9, 9), np.int64), "is torch.int64; give uint8 (0 to 255) or floating point (0 to 1)"),
    (np.full((9, 9), 255.0), "has values from 255 to 255; floating-point pixels are 0 to 1"),
    (np.full((9, 9), np.nan), "has values from nan to nan"),
    ([], "images are an empty sequence"),
    ([np.zeros((2, 1, 9, 9), np.uint8)], "image 0 is a batch of 2; give a batch alone, not in a list"),
]


@pytest.mark.parametrize(("images", "reason"), REFUSED)
def test_what_is_no_image_is_refused_in_one_line(network: Predictor, images: Any, reason: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(reason)) as caught:
        network.predict(images)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_image_is_named(network: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    for path in (tmp_path / "a.png", tmp_path / "none.png"):
        with pytest.raises(DataError, match=re.escape(f"{path}: is no image (")):
            network.predict(path)


def test_reconstructions_are_of_the_longest_capsule_or_of_the_one_that_is_asked_for(
    network: Predictor, tested: Any
) -> None:
    images, found = tested[0], network.predict(tested[0])
    drawn = network.reconstruct(images)
    assert tuple(drawn.shape) == images.shape
    assert torch.equal(drawn, network.reconstruct(images, found.labels))
    other = (found.labels + 1) % 3
    assert not torch.equal(drawn, network.reconstruct(images, other.tolist()))


def test_a_network_without_decoder_or_run_or_gpu_is_refused(shapes: Path, tmp_path: Path) -> None:
    run_small(small_config(shapes, kind="baseline_cnn", max_steps=1), tmp_path)
    network = capsdist.load(tmp_path / "step-0001")
    assert network.predict(np.zeros((9, 9), np.uint8)).poses is None
    with pytest.raises(ShapeError, match=r"has no decoder; train with --model.decoder"):
        network.reconstruct(np.zeros((9, 9), np.uint8))
    with pytest.raises(CheckpointError, match="no checkpoint below"):
        capsdist.load(tmp_path / "nothing")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch finds no GPU"):
            capsdist.load(tmp_path / "step-0001", device="gpu")
