"""`--model.from-data`: the network takes channels, size, classes and labels from the index of its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capsdist.cli import parse_command
from capsdist.cli.main import main
from capsdist.config import PRESETS, BaselineCNNConfig, Config, Data
from capsdist.data import write_split
from capsdist.errors import DataError
from capsdist.launch.as_data import fitted


def write(root: Path, shape: tuple[int, int, int], num_classes: int, num_labels: int = 1) -> None:
    images = np.zeros((12, *shape), np.uint8)
    labels = np.arange(12) % num_classes if num_labels == 1 else np.zeros((12, num_labels), np.int64)
    classes = [f"class {number}" for number in range(num_classes)]
    write_split(root / "own/train", images, labels, classes=classes)


def numbers(config: Config) -> tuple[object, ...]:
    model = fitted(config).model
    return model.in_channels, model.image_size, model.num_classes, model.num_labels


@pytest.mark.parametrize(
    ("shape", "num_classes", "num_labels", "data", "expected"),
    [
        ((3, 20, 20), 7, 1, {}, (3, 20, 7, 1)),
        ((1, 20, 31), 2, 1, {}, (1, (20, 31), 2, 1)),
        ((2, 20, 31), 9, 3, {}, (2, (20, 31), 9, 3)),
        ((1, 20, 31), 1, 1, {}, (1, (20, 31), 2, 1)),  # a network has two classes at least
        ((3, 20, 20), 7, 1, {"crop": 12}, (3, 12, 7, 1)),
        ((3, 20, 20), 7, 1, {"resize": (12, 16)}, (3, (12, 16), 7, 1)),
    ],
)
def test_a_network_fits_its_data(tmp_path, shape, num_classes, num_labels, data, expected):
    write(tmp_path, shape, num_classes, num_labels)
    place = Data.model_validate({"name": "own", "root": str(tmp_path), **data})
    config = PRESETS["capsnet_small"]().model_copy(update={"data": place})
    assert numbers(config) == expected
    assert fitted(fitted(config)) == fitted(config)
    other = config.model_copy(update={"model": BaselineCNNConfig(from_data=True)})
    assert numbers(other) == expected
    as_it_is = config.model_copy(update={"model": BaselineCNNConfig(num_classes=4)})
    assert numbers(as_it_is) == (1, 28, 4, 1)


def test_the_command_line_shows_what_was_taken(tmp_path, capsys):
    write(tmp_path, (3, 20, 31), 6)
    words = ["--data.root", str(tmp_path), "--data.name", "own", "--data.shift", "0"]
    config, _ = parse_command("Train.", list(PRESETS), "mnist_paper", [*words, "--model.from-data"])
    assert (config.model.in_channels, config.model.image_size, config.model.num_classes) == (3, (20, 31), 6)
    assert main(["train", "capsnet_small", *words, "--print-config"]) == 0
    assert "num_classes: 6" in capsys.readouterr().out


def test_data_that_is_not_packed_is_told_in_one_line(tmp_path, capsys):
    words = ["train", "capsnet_small", "--data.root", str(tmp_path), "--data.name"]
    assert main([*words, "own", "--check"]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/own/train: there is no packed split; pack it, or set --data.root and "
        "--data.name to a packed set\n"
    )
    place = Data(name="digits", root=str(tmp_path))
    config = PRESETS["capsnet_small"]().model_copy(update={"data": place})
    with pytest.raises(DataError, match=r"digits/train: there is no packed split; pack it with `.*pack di"):
        fitted(config)
    write(tmp_path, (3, 20, 20), 3)
    index = tmp_path / "own/train/index.json"
    index.write_text(index.read_text().replace('"shape": [\n    3,', '"shape": [\n    4,'))
    assert main([*words, "own", "--check"]) == 1
    assert "index.json was altered, it does not match its own digest; " in capsys.readouterr().err
