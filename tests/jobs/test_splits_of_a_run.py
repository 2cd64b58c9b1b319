"""What a run is told of its splits before it starts: missing ones, the command that packs them, overlaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from job_helpers import TINY_FLAGS, save_tiny, tiny_config, write_tiny

from capsdist.cli import run_job
from capsdist.config import Config, get_preset
from capsdist.console import DONE, INVALID
from capsdist.data import write_split
from capsdist.errors import ConfigError, DataError
from capsdist.launch.preflight import check_data, overlap, packing_remedy
from capsdist.runs.rundir import RunFolder
from capsdist.tune.space import validation_problem

WITHOUT = "or do without: --data.validation-split None --train.keep-best 0"


def of(name: str, train: str = "train", validation: str | None = "validation") -> Config:
    """A configuration that reads these splits of the data set `name`."""
    config = get_preset("capsnet_small")
    data = {"name": name, "train_split": train, "validation_split": validation}
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


@pytest.mark.parametrize(
    ("name", "train", "split", "words"),
    [
        (
            "mnist",
            "train",
            "validation",
            ["pack mnist --validation 0.1", "--data.train-split train_part", WITHOUT],
        ),
        ("mnist", "train_part", "validation", ["pack mnist --validation 0.1", WITHOUT]),
        ("mnist", "train_part", "train_part", ["pack mnist --validation 0.1"]),
        ("mnist", "train", "test", ["pack mnist "]),
        ("digits", "train_part", "validation", ["pack digits "]),
        ("smallnorb_azimuth", "train", "validation", ["pack smallnorb_azimuth "]),
        ("affnist", "train", "train", ["pack it yourself", "makes test"]),
        ("own", "train", "validation", ["pack it, or set --data.root and --data.name", WITHOUT]),
        ("own", "train", "test", ["pack it, or set --data.root and --data.name to a packed set"]),
    ],
)
def test_a_missing_split_comes_with_the_command_that_packs_it(name, train, split, words) -> None:
    remedy = packing_remedy(of(name, train), split)
    assert all(word in remedy for word in words), remedy
    assert ("--data.train-split" in remedy) == (
        train == "train" and split == "validation" and name == "mnist"
    )
    assert (WITHOUT in remedy) == (WITHOUT in words)


def test_a_missing_split_for_validation_is_named_before_the_run(tmp_path: Path, capsys) -> None:
    write_tiny(tmp_path)
    flags = [*TINY_FLAGS, f"--data.root={tmp_path}", f"--train.storage={tmp_path}"]
    flags.append("--data.validation-split=validation")
    assert run_job("A job.", ["mnist_paper"], argv=[*flags, "--check"]) == DONE
    assert f"warning: {tmp_path}/tiny/validation: not packed yet; pack it, " in capsys.readouterr().err
    config = tiny_config(tmp_path, tmp_path, "run")
    data = config.data.model_copy(update={"validation_split": "validation"})
    with pytest.raises(DataError, match=r"tiny/validation: .*or do without: --data.validation-split None"):
        check_data(config.model_copy(update={"data": data}))


def test_images_for_validation_are_not_trained_on(tmp_path: Path, capsys) -> None:
    """`train` stays whole beside the parts that are made of it."""
    write_tiny(tmp_path)
    for split in ("train_part", "validation"):
        write_tiny(tmp_path / "parts", num_train=40, num_test=20)
        (tmp_path / "parts/tiny" / ("train" if split == "train_part" else "test")).rename(
            tmp_path / "tiny" / split
        )
    found = {
        (train, validation): overlap(of("tiny", train, validation).model_copy(update={"data": placed}))
        for train, validation in (("train", "validation"), ("train_part", "validation"), ("train", "test"))
        for placed in [of("tiny", train, validation).data.model_copy(update={"root": str(tmp_path)})]
    }
    assert [pair for pair, problem in found.items() if problem] == [("train", "validation")]
    message = "data.train_split='train': has all images of 'validation', which were taken from it; "
    assert str(found["train", "validation"]) == f"{message}set --data.train-split train_part"
    flags = [*TINY_FLAGS, f"--data.root={tmp_path}", f"--train.storage={tmp_path}"]
    flags.append("--data.validation-split=validation")
    assert run_job("A job.", ["mnist_paper"], argv=[*flags, "--check"]) == INVALID
    assert f"error: {message}" in capsys.readouterr().err
    config = tiny_config(tmp_path, tmp_path, "run")
    data = config.data.model_copy(update={"validation_split": "validation"})
    with pytest.raises(ConfigError, match="which were taken from it"):
        check_data(config.model_copy(update={"data": data}))
    data = data.model_copy(update={"train_split": "train_part"})
    assert check_data(config.model_copy(update={"data": data})).num_samples == 40


def test_a_set_packed_with_a_split_of_its_own_is_no_overlap(tmp_path: Path) -> None:
    """As `capsdist pack folder` makes it: train does not hold the images for validation."""
    for split in ("train", "validation", "test"):
        images = np.zeros((20, 1, 4, 4), np.uint8)
        write_split(tmp_path / "mine" / split, images, np.arange(20) % 2, classes=["a", "b"])
    data = of("mine").data.model_copy(update={"root": str(tmp_path)})
    assert overlap(of("mine").model_copy(update={"data": data})) is None


def test_other_classes_of_the_split_for_validation_are_refused(tmp_path: Path, capsys) -> None:
    write_tiny(tmp_path)
    images, names = np.zeros((20, 1, 12, 12), np.uint8), [f"other {number}" for number in range(10)]
    write_split(tmp_path / "tiny/validation", images, np.arange(20) % 10, classes=names)
    flags = [*TINY_FLAGS, f"--data.root={tmp_path}", f"--train.storage={tmp_path}", "--check"]
    argv = [*flags, "--data.validation-split=validation"]
    assert run_job("A job.", ["mnist_paper"], argv=argv) == INVALID
    assert "data.validation_split='validation': numbers its classes in another" in capsys.readouterr().err


def test_a_search_without_validation_is_refused_with_the_command() -> None:
    problem = str(validation_problem(get_preset("mnist_paper")))
    assert problem.startswith(
        "data.validation_split=None: has no validation, and a search compares the errors"
    )
    assert "pack mnist --validation 0.1" in problem
    assert "--data.train-split train_part" in problem
    assert problem.endswith("then set --data.validation-split validation")
    assert "\n" not in problem
    assert validation_problem(get_preset("digits_quickstart")) is None


def test_a_run_of_the_digits_that_began_on_all_of_them_goes_on(tmp_path: Path) -> None:
    """The quickstart of version 0.1: neither its validation nor its training split is today's."""
    today = get_preset("digits_quickstart")
    stored = today.model_dump(mode="json")
    del stored["data"]["validation_split"]
    stored["data"]["train_split"] = "train"
    run = RunFolder(tmp_path)
    save_tiny(tmp_path, 4, config=Config.model_validate(stored))
    begun, note = run.as_begun(today)
    assert (begun.data.train_split, begun.data.validation_split) == ("train", "test")
    assert note is not None
    assert note.startswith("continues as version 0.1 began it: data.train_split='train' not 'train_part', ")
    run.check_continues(begun, 4000)
