"""Options of booleans and of sizes on the command line of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsdist.cli import parse_command
from capsdist.config import Config
from capsdist.config.as_yaml import to_yaml


@pytest.mark.parametrize(
    "words", ["--train.init-strict false", "--train.init_strict=False", "--train.no-init-strict"]
)
def test_a_boolean_is_a_flag_or_has_a_value(words: str) -> None:
    argv = [*words.split(), "--model.capsule-bias", "true"]
    config, _ = parse_command("A job.", ("mnist_paper",), None, argv)
    assert (config.train.init_strict, config.model.capsule_bias) == (False, True)


@pytest.mark.parametrize(("words", "size"), [("=32", 32), (" 32", 32), (" 32 64", (32, 64))])
def test_a_size_is_one_number_or_two_in_options_and_files(words: str, size: object, tmp_path: Path) -> None:
    argv = f"--model.image-size{words} --data.crop{words} --train.seed 7".split()
    config, _ = parse_command("A job.", ("mnist_paper",), None, argv)
    assert (config.model.image_size, config.data.crop, config.train.seed) == (size, size, 7)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    read, _ = parse_command("A job.", ("mnist_paper",), None, ["--config", str(tmp_path / "run.yaml")])
    assert read == config


@pytest.mark.parametrize(("word", "size"), [("auto", "auto"), ("7", 7), ("None", None)])
def test_the_size_of_a_microbatch_is_a_number_or_a_word(word: str, size: object, tmp_path: Path) -> None:
    config, _ = parse_command("A job.", ("mnist_paper",), None, ["--train.microbatch-size", word])
    assert config.train.microbatch_size == size
    assert Config.model_validate_json(config.model_dump_json(), strict=True) == config
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    read, _ = parse_command("A job.", ("mnist_paper",), None, ["--config", str(tmp_path / "run.yaml")])
    assert read == config
