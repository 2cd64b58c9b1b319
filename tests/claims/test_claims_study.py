"""The study: which runs it trains, on which images, what it writes; whole, on tiny networks without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capsdist.claims.experiment import BASELINE, CAPSNET
from capsdist.claims.report import NUMBERS, TABLE, write_study
from capsdist.claims.settings import Settings
from capsdist.claims.smoke import smoke_settings
from capsdist.claims.study import ON_DIGITS, run_study
from capsdist.claims.subsets import pack_part
from capsdist.config import Config
from capsdist.data import Split, write_split
from capsdist.errors import ConfigError, DataError
from capsdist.launch import RunSummary
from capsdist.statistics import paired_interval

Train = Callable[[Config], RunSummary]


def write_digits(root: Path, num: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng()
    images, labels = rng.integers(0, 256, (num, 1, 28, 28), dtype=np.uint8), rng.integers(0, 3, num)
    for split in ("train", "test"):
        write_split(root / "mnist" / split, images, labels, classes=tuple("0123456789"))
    return images, labels


def test_parts_are_drawn_by_class_and_seed_and_contain_one_another(tmp_path: Path) -> None:
    images, labels = write_digits(tmp_path)
    kept = {}
    for percent, seed in ((10, 0), (40, 0), (40, 1)):
        name, num = pack_part(str(tmp_path), "mnist", percent, seed)
        found, classes = Split(tmp_path / "mnist" / name).gather(np.arange(num))
        pixels = [image.tobytes() for image in images]
        ids = [pixels.index(image.tobytes()) for image in found]
        assert (labels[ids] == classes).all()
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
            assert (classes == label).sum() == max(round(percent / 100 * count), 1)
        kept[percent, seed] = set(ids)
    assert kept[10, 0] < kept[40, 0]
    assert kept[40, 0] != kept[40, 1]
    before = (tmp_path / "mnist" / name / "index.json").read_bytes()
    pack_part(str(tmp_path), "mnist", 40, 1)
    assert (tmp_path / "mnist" / name / "index.json").read_bytes() == before
    assert pack_part(str(tmp_path), "mnist", 100, 3) == ("train", 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (0, 0)}, r"seeds=\(0, 0\): are not distinct numbers from 0; give --seeds 0 1 2"),
        ({"fractions": (0.0, 10.0)}, r"fractions=\(0.0, 10.0\): are not distinct numbers above 0"),
        ({"test_images": 0}, "test_images=0: must be above 0; leave out --test-images"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_read(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_study(replace(Settings(root="/nowhere"), **change), print)


def test_digits_that_are_not_packed_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mnist"):
        run_study(Settings(root=str(tmp_path)), print)


def test_a_stopped_run_stops_the_study(tmp_path: Path) -> None:
    write_digits(tmp_path)
    asked: list[Config] = []

    def stopped(config: Config) -> RunSummary:
        asked.append(config)
        return RunSummary(config.train.name, "", "stopped", 0, None, None, 0.0)

    settings = Settings(root=str(tmp_path), fractions=(50.0, 100.0), storage=str(tmp_path / "runs"))
    assert run_study(settings, print, train=stopped) is None
    assert [config.train.name for config in asked] == ["claims-mnist-mini-capsnet-50-seed-0"]
    assert (asked[0].data.shift, asked[0].train.max_steps) == (0, 3)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed set as small as smallNORB's is large, with its splits."""
    root, rng = tmp_path_factory.mktemp("toys"), np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        images = rng.integers(0, 256, (10, 2, 96, 96), dtype=np.uint8)
        write_split(root / split, images, np.arange(10) % 5, classes=tuple("abcde"))
    return root


def test_a_whole_study(tmp_path: Path, toys: Path, trained_here: Train) -> None:
    settings, note = smoke_settings(Settings(root=str(tmp_path / "nowhere")), tmp_path)
    assert "printed digits, because no packed set is there; no result" in note
    (tmp_path / "data" / "smallnorb_azimuth").symlink_to(toys)
    settings = replace(settings, fractions=(100.0, 20.0), epochs=1, images=200, test_images=60)
    lines: list[str] = []
    study = run_study(settings, lines.append, note=note, train=trained_here)
    assert study is not None
    paths = write_study(study, str(tmp_path / "out"))
    names = {"less_data", *(each.name for each in ON_DIGITS), "viewpoints_azimuth"}
    assert {Path(path).name for path in paths} == {NUMBERS, TABLE, *(f"{name}.png" for name in names)}
    assert all(Path(path).stat().st_size > 500 for path in paths)

    found = json.loads((tmp_path / "out" / NUMBERS).read_text())
    assert found["experiments"].keys() == names
    assert list(found["not_run"]) == ["viewpoints_elevation"]
    assert "capsdist pack smallnorb_elevation" in found["not_run"]["viewpoints_elevation"]
    digits = [run for run in found["runs"] if "mnist" in run["name"]]
    assert [(run["network"], run["seed"], run["fraction_percent"]) for run in digits] == [
        (network, seed, fraction)
        for seed in (0, 1) for fraction in (20, 100) for network in (CAPSNET, BASELINE)
    ]  # fmt: skip
    assert {run["steps"] for run in digits} == {2}
    for experiment in found["experiments"].values():
        for series in experiment["series"]:
            for place in range(len(experiment["conditions"])):
                rows = [
                    [row[series][place] for row in experiment["seeds"][name]] for name in (CAPSNET, BASELINE)
                ]
                expected = paired_interval(*rows)
                assert experiment["capsnet_minus_baseline"][series][place] == pytest.approx(list(expected))
    plain = {name: found["experiments"][name]["seeds"] for name in ("rotation", "scale", "noise", "fgsm")}
    for network in (CAPSNET, BASELINE):
        errors = {tuple(row["error_percent"][0] for row in seeds[network]) for seeds in plain.values()}
        assert len(errors) == 1, "the first condition leaves the images as they are"

    text = (tmp_path / "out" / TABLE).read_text()
    assert all(
        claim["sentence"] in text for each in found["experiments"].values() for claim in each["claims"]
    )
    assert note in text
