"""Mean and standard deviation of a split's channels, as options of a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from capsdist.cli.main import main
from capsdist.data.statistics import channel_statistics


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 4, 7)])
def test_statistics_are_those_of_all_pixels(make_split: Callable[..., Any], shape: tuple[int, ...]) -> None:
    made = make_split(301, shape=shape)
    mean, std = channel_statistics(made.folder)
    pixels = made.images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), atol=1e-6)


def test_verify_prints_them_as_options(
    make_split: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_split(40, shape=(2, 5, 3)).folder)
    mean, std = channel_statistics(folder)
    monkeypatch.setattr("sys.argv", ["capsdist"])
    assert main(["verify", folder, "--statistics"]) == 0
    words = capsys.readouterr().out.split("\n")[1].split()
    assert words[0] == "--data.normalise-mean"
    assert words[3] == "--data.normalise-std"
    assert [float(word) for word in words[1:3] + words[4:]] == pytest.approx([*mean, *std], rel=1e-5)
    assert main(["verify", folder]) == 0
    assert "normalise" not in capsys.readouterr().out
