"""The overview of a run: what it reads, which images it shows, that no text overlaps."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from made_runs import TINY, make_run, rows_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from capsdist.analysis.drawing import Samples, draw_overview, headline, percent_ticks, smoothed
from capsdist.analysis.overview import overview, pick_samples
from capsdist.config import BaselineCNNConfig, CapsNetConfig, Config, Data
from capsdist.errors import DataError, RunError
from capsdist.models import build_model

CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def samples_of(num: int, num_classes: int, channels: int = 1, decoded: bool = True, seed: int = 0) -> Samples:
    """Random images; the last two are misread."""
    rng = np.random.default_rng(seed)
    images = rng.random((num, 7, 8) if channels == 1 else (num, 7, 8, 3))
    labels = rng.integers(0, num_classes, num)
    predictions = labels.copy()
    predictions[-2:] = (labels[-2:] + 1) % num_classes
    return Samples(images, images if decoded else None, labels, predictions, predictions)


RUNS = {
    "capsnet": (CapsNetConfig(**TINY), {}),
    "no decoder": (CapsNetConfig(**TINY, decoder=False), {}),
    "baseline": (BaselineCNNConfig(image_size=9, num_classes=4), {}),
    "colour, cropped, standardised": (
        CapsNetConfig(**TINY, in_channels=3, decoder=False), {"crop": 9, "standardise": True}
    ),
    "two channels, 13 classes": (CapsNetConfig(**{**TINY, "num_classes": 13}, in_channels=2), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_overview_draws_a_run(name: str, tmp_path: Path) -> None:
    model, data = RUNS[name]
    config = Config(model=model, data=Data(name="made", root=str(tmp_path / "data"), shift=0, **data))
    run = make_run(tmp_path, config)
    path = Path(overview(run))
    pixels = imread(path)
    assert path == run / "overview.png"
    assert pixels.shape[1] == 1540
    assert pixels.std() > 0.05


def test_overview_finds_moved_data(tmp_path: Path) -> None:
    config = Config(model=CapsNetConfig(**TINY), data=Data(name="made", root="elsewhere", shift=0))
    run = make_run(tmp_path, config)
    assert Path(overview(run, data_root=tmp_path / "data")).exists()


@pytest.mark.parametrize("decoder", [True, False])
def test_misread_images_come_last_and_are_decoded_as_either_class(decoder: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = Config(
        model=CapsNetConfig(**TINY, decoder=decoder),
        data=Data(name="made", root=str(tmp_path / "data"), shift=0),
    )
    make_run(tmp_path, config)
    network = build_model(config.model, config.routing).eval()
    samples = pick_samples(config, network, tmp_path / "data/made/test", num_columns=7)
    wrong = samples.labels != samples.predictions
    num_wrong = 4 if decoder else 2
    assert wrong[-num_wrong:].all()
    assert not wrong[:-num_wrong].any()
    assert len(samples.labels) <= 7
    if not decoder:
        assert samples.reconstructions is None
        return
    assert (samples.targets[-4::2] == samples.labels[-4::2]).all()
    assert (samples.targets[-3::2] == samples.predictions[-3::2]).all()
    assert samples.reconstructions is not None
    images = torch.tensor(samples.images).unsqueeze(1)
    expected = network(images, torch.tensor(samples.targets)).reconstructions.detach()[:, 0]
    np.testing.assert_allclose(samples.reconstructions, expected, rtol=1e-4, atol=1e-6)


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    config = Config(model=CapsNetConfig(**TINY), data=Data(name="made", root=str(tmp_path / "data"), shift=0))
    run = make_run(tmp_path, config)
    newer = run / "step_00000050"
    shutil.copytree(run / "step_00000040", newer)
    (newer / "manifest.json").write_bytes(b"\xff")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    warnings: list[str] = []
    assert Path(overview(run, log=warnings.append)).exists()
    line, checkpoint = warnings
    assert re.match(rf"warning: passed over line \d+ of {run}/metrics.jsonl: it is not UTF-8", line)
    assert f"passed over a checkpoint: checkpoint {newer} is damaged: manifest" in checkpoint


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"{tmp_path} holds no metrics\.jsonl; give the folder of a run"):
        overview(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    with pytest.raises(RunError, match=f"{tmp_path} has no checkpoint; give the folder"):
        overview(tmp_path)


def test_a_picture_that_is_cut_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(model=CapsNetConfig(**TINY), data=Data(name="made", root=str(tmp_path / "data"), shift=0))
    run = make_run(tmp_path, config)
    before = sorted(run.iterdir())

    def cut(figure: Figure, file: BinaryIO, format: str) -> None:
        file.write(b"\x89PNG")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", cut)
    with pytest.raises(KeyboardInterrupt):
        overview(run)
    assert sorted(run.iterdir()) == before


def drawn_texts(figure: Figure) -> list[Text]:
    """Every text that is drawn: of the figure and its parts, of axes, and of ticks within the limits."""
    texts = {t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text() and t.get_visible()}
    for axes in figure.findobj(Axes):
        assert isinstance(axes, Axes)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not (axes.axison and low <= tick.get_loc() <= high):
                    texts -= {tick.label1, tick.label2}
    return list(texts)


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts of a figure whose boxes overlap by more than a pixel, turned ones left out."""
    figure.draw_without_rendering()
    texts = [text for text in drawn_texts(figure) if text.get_rotation() % 90 == 0]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [
        (a, b)
        for i, (a, first) in enumerate(boxes)
        for b, second in boxes[i + 1 :]
        if min(first.x1, second.x1) - max(first.x0, second.x0) > 1
        and min(first.y1, second.y1) - max(first.y0, second.y0) > 1
    ]


DIGITS = list("0123456789")
FIGURES = {
    "digits": (rows_of(10), samples_of(24, 10), DIGITS),
    "colour without decoder": (rows_of(10), samples_of(24, 10, channels=3, decoded=False), CIFAR_NAMES),
    "few images": (rows_of(10, best=2.34), samples_of(5, 10), CIFAR_NAMES),
    "many classes": (rows_of(47), samples_of(24, 47), [f"sign {i}" for i in range(47)]),
    "not tested yet": (rows_of(10, confusions=False)[:5], samples_of(3, 10), DIGITS),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_another(name: str) -> None:
    assert overlapping_texts(draw_overview(*FIGURES[name])) == []


def test_an_overlap_is_noticed() -> None:
    figure = draw_overview(*FIGURES["digits"])
    figure.text(0.05, 0.9, "in the way " * 10, fontsize=60)
    assert overlapping_texts(figure)


def test_no_error_is_labelled_0() -> None:
    axes = draw_overview(*FIGURES["digits"]).axes[1]
    labels = {text.get_text(): text.get_position()[1] for text in axes.get_yticklabels()}
    [test_line] = [line for line in axes.lines if line.get_label() == "test"]
    assert set(test_line.get_ydata()) == {labels["0"]}
    assert labels["0"] < min(axes.lines[0].get_ydata())
    with_errors = draw_overview(*FIGURES["few images"]).axes[1]
    assert "0" not in [text.get_text() for text in with_errors.get_yticklabels()]


@pytest.mark.parametrize("high", [0.3, 1.5, 30.0, 100.0])
@pytest.mark.parametrize("decades", [0.05, 0.3, 0.6, 1.0, 1.7, 2.5, 4.0, 6.0])
@pytest.mark.parametrize("has_zero", [True, False])
def test_ticks_of_errors_are_few_and_within_the_axis(high: float, decades: float, has_zero: bool) -> None:
    low = high / 10**decades
    zero = 1.05 * low if has_zero else None
    ticks = percent_ticks(low, high, zero)
    assert (1 if has_zero else 2) <= len(ticks) <= 8  # zero itself, or the range is readable
    assert ticks == sorted(set(ticks))
    assert low <= ticks[0] <= ticks[-1] <= high
    if zero is not None:
        assert ticks[0] == zero


def test_misread_images_are_titled_as_in_figure_3_of_the_paper() -> None:
    samples = Samples(np.zeros((2, 3, 3)), np.zeros((2, 3, 3)), *np.array([[5, 5], [5, 3], [5, 3]]))
    titles = [axes.get_title() for axes in draw_overview(rows_of(10), samples, DIGITS).axes]
    assert {"5", "5\nread as 3", "as 3"} <= set(titles)


def test_headline_puts_the_run_into_words() -> None:
    words = headline(rows_of(10, best=2.34))
    assert "made-up" in words
    assert "8.2 M parameters" in words
    assert "2 workers, cpu fp32" in words
    assert "40 steps" in words
    assert words.endswith("error 2.34 % of 6,000 test images")


@pytest.mark.parametrize("num", [1, 7, 100])
def test_smoothing_is_a_running_mean(num: int) -> None:
    values = np.random.default_rng(num).random(num)
    width = max(1, num // 30)
    expected = [values[max(0, i + 1 - width) : i + 1].mean() for i in range(num)]
    np.testing.assert_allclose(smoothed(values), expected)


def test_matplotlib_is_imported_late_and_pyplot_never() -> None:
    program = """
import sys
import numpy as np
from capsdist.analysis.drawing import Samples, draw_overview
import capsdist.analysis.overview
assert "matplotlib" not in sys.modules
zeros = np.zeros(1, dtype=int)
draw_overview([{"kind": "start"}], Samples(np.zeros((1, 2, 2)), None, zeros, zeros, zeros), ["a"])
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def with_validation(split: str | None, tested: bool) -> list[dict[str, Any]]:
    """Event rows of a run with a split for validation, or without validation, and of its test."""
    rows = [row for row in rows_of(10, best=3.0) if split is not None or row["kind"] != "validation"]
    rows[0] |= {"validation_split": split, "test_split": "test"}
    table = np.eye(10, dtype=int).tolist()
    test = {
        "kind": "test",
        "step": 40,
        "loss": 0.5,
        "num_images": 1234,
        "error_percent": 4.0,
        "confusion": table,
    }
    return [*rows, test] if tested else rows


@pytest.mark.parametrize(
    ("split", "tested", "words", "title", "labels"),
    [
        ("validation", True, "4.00 % of 1,234 test images", "test", ["training", "validation", "test"]),
        ("validation", False, "3.00 % of 6,000 validation images", "validation", ["training", "validation"]),
        (None, True, "4.00 % of 1,234 test images", "test", ["training", "test"]),
        ("test", False, "3.00 % of 6,000 test images", "test", ["training", "test"]),
    ],
)
def test_the_figure_tells_validation_from_test(split, tested: bool, words: str, title: str, labels) -> None:
    rows = with_validation(split, tested)
    assert headline(rows).endswith(f"error {words}")
    figure = draw_overview(rows, samples_of(5, 10), DIGITS)
    loss, error, confusion = figure.axes[:3]
    assert [line.get_label() for line in error.lines] == labels
    assert len(loss.lines) == (2 if split is None else 3)
    assert confusion.get_title("left") == f"Confusions of the last {title}"
    assert overlapping_texts(figure) == []
    [heading] = [each for each in drawn_texts(figure) if "below each its reconstruction" in each.get_text()]
    assert heading.get_text().startswith("Validation" if title == "validation" else "Test")
    number = "4.00" if tested else "3.00"
    assert [text.get_text() for text in error.texts] == [number]


def test_images_are_of_the_test_split_only_after_the_test(tmp_path: Path) -> None:
    data = Data(name="made", root=str(tmp_path / "data"), shift=0, validation_split="validation")
    config = Config(model=CapsNetConfig(**TINY), data=data)
    run = make_run(tmp_path, config)
    test, other = tmp_path / "data/made/test", tmp_path / "data/made/validation"
    test.rename(other)
    assert Path(overview(run)).exists()
    rows = [*map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
    rows.append({"kind": "test", "step": 40, "loss": 0.5, "num_images": 40, "error_percent": 4.0})
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match="made/test"):
        overview(run)
