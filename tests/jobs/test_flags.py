"""Options of booleans on the command line of jobs."""

from __future__ import annotations

import pytest

from capsdist.cli import parse_command


@pytest.mark.parametrize(
    "words", ["--train.init-strict false", "--train.init_strict=False", "--train.no-init-strict"]
)
def test_a_boolean_is_a_flag_or_has_a_value(words: str) -> None:
    argv = [*words.split(), "--model.capsule-bias", "true"]
    config, _ = parse_command("A job.", ("mnist_paper",), None, argv)
    assert (config.train.init_strict, config.model.capsule_bias) == (False, True)
