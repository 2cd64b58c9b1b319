"""The study: which runs it trains, on which images, what it keeps; whole, on tiny networks without Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capsdist.claims.experiment import BASELINE, CAPSNET
from capsdist.claims.measuring import MEASUREMENTS
from capsdist.claims.plan import planned
from capsdist.claims.report import NUMBERS, TABLE, files_of, markdown
from capsdist.claims.settings import Settings
from capsdist.claims.smoke import smoke_settings
from capsdist.claims.study import ON_DIGITS, Study, Train, run_study
from capsdist.claims.subsets import part_of
from capsdist.config import Config
from capsdist.config.steps import total_steps
from capsdist.data import Split, write_split
from capsdist.errors import ConfigError, DataError, RunError
from capsdist.statistics import paired_interval
from capsdist.storage.documents import dump_json
from capsdist.tune.cells import Cell


def write_digits(root: Path, num: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng()
    images, labels = rng.integers(0, 256, (num, 1, 28, 28), dtype=np.uint8), rng.integers(0, 3, num)
    for split in ("train", "test"):
        write_split(root / "mnist" / split, images, labels, classes=tuple("0123456789"))
    return images, labels


def test_parts_are_drawn_by_class_and_seed_and_contain_one_another(tmp_path: Path) -> None:
    images, labels = write_digits(tmp_path)
    place, kept = tmp_path / "mnist", {}
    for percent, seed in ((10, 0), (40, 0), (40, 1)):
        part = part_of(str(place), percent, seed)
        assert not (place / part.name).exists(), "planning writes nothing"
        part.write()
        found, classes = Split(place / part.name).gather(np.arange(part.num_images))
        pixels = [image.tobytes() for image in images]
        ids = [pixels.index(image.tobytes()) for image in found]
        assert (labels[ids] == classes).all()
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
            assert (classes == label).sum() == max(round(percent / 100 * count), 1)
        kept[percent, seed] = set(ids)
    assert kept[10, 0] < kept[40, 0]
    assert kept[40, 0] != kept[40, 1]
    before = (place / part.name / "index.json").read_bytes()
    part_of(str(place), 40, 1).write()
    assert (place / part.name / "index.json").read_bytes() == before
    whole = part_of(str(place), 100, 3)
    assert (whole.name, whole.num_images) == ("train", 60)


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
        planned(replace(Settings(root="/nowhere"), **change))


def test_digits_that_are_not_packed_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mnist.*capsdist pack mnist"):
        planned(Settings(root=str(tmp_path)))


def test_all_runs_are_cells_of_one_grid_with_equal_steps(tmp_path: Path) -> None:
    write_digits(tmp_path)
    settings = Settings(root=str(tmp_path), fractions=(100.0, 0.5), seeds=(4, 2), epochs=7, images=50)
    plan = planned(settings)
    assert [*plan.cells] == [
        f"mnist-mini-{network}-{part}-seed-{seed}"
        for seed in (4, 2) for part in ("0_5", "100") for network in (CAPSNET, BASELINE)
    ]  # fmt: skip
    assert plan.summary.startswith("study claims: 8 runs of 3 steps; ")
    assert [run.config.data.shift for run in plan.runs] == [0] * 8
    images = [part.num_images for part in plan.parts for _ in (CAPSNET, BASELINE)]
    assert [total_steps(run.config, num) for run, num in zip(plan.runs, images, strict=True)] == [3] * 8
    assert (plan.grid.train.name, [*plan.not_run]) == (
        "claims",
        ["viewpoints_azimuth", "viewpoints_elevation"],
    )
    asked: list[str] = []

    def stopped(grid: Config, cells: Mapping[str, Config]) -> None:
        asked.extend(cells)

    assert run_study(plan, stopped, print) is None
    assert asked == [*plan.cells]


def test_runs_that_failed_are_named(tmp_path: Path) -> None:
    write_digits(tmp_path)

    def fails(grid: Config, cells: Mapping[str, Config]) -> dict[str, Cell]:
        return {name: Cell(name, "", "failed", "no room") for name in cells}

    plan = planned(Settings(root=str(tmp_path), seeds=(0,), fractions=(100.0,)))
    with pytest.raises(RunError, match=r"2 of 2 runs .*\(mnist-mini-capsnet-100-seed-0 failed no room\)"):
        run_study(plan, fails, print)


def test_a_whole_study_and_what_it_keeps(tmp_path: Path, trains_here: Train) -> None:
    settings, note = smoke_settings(Settings(root=str(tmp_path / "nowhere")), tmp_path)
    assert note.count("made-up images") == 2
    settings = replace(settings, test_images=30)
    lines: list[str] = []

    def study_of(settings: Settings) -> Study:
        lines.clear()
        study = run_study(planned(settings), trains_here, lines.append, note=note)
        assert study is not None
        return study

    study = study_of(settings)
    assert len(lines) == 4 * len(ON_DIGITS) + 4
    names = ["less_data", *(each.name for each in ON_DIGITS), "viewpoints_azimuth"]
    assert [each.experiment.name for each in study.results] == names
    check_numbers(json.loads(dump_json(study.as_data())), markdown(study), note)
    files = files_of(replace(study, results=study.results[::5]))  # to draw all takes long
    assert [*files] == [NUMBERS, TABLE, *(f"{name}.png" for name in names[::5])]
    assert all(len(content) > 500 for content in files.values())

    again = study_of(settings)
    assert (again.figures, lines) == (study.figures, [])
    kept = tmp_path / "runs" / "claims" / MEASUREMENTS / "mnist-tiny-capsnet-50-seed-1.json"
    kept.write_bytes(kept.read_bytes().replace(b"rotation", b"rotatiom"))
    again = study_of(settings)
    assert again.figures == study.figures
    assert len(lines) == 1 + len(ON_DIGITS)
    assert lines[0].startswith("warning: measures again: ")
    assert "was changed" in lines[0]
    study_of(replace(settings, test_images=20))
    assert len(lines) == 4 * len(ON_DIGITS), "other images"


def check_numbers(found: dict, text: str, note: str) -> None:
    assert list(found["not_run"]) == ["viewpoints_elevation"]
    assert "no data" in found["not_run"]["viewpoints_elevation"]
    digits = [run for run in found["runs"] if "mnist" in run["name"]]
    assert [(run["network"], run["seed"], run["fraction_percent"]) for run in digits] == [
        (network, seed, 50) for seed in (0, 1) for network in (CAPSNET, BASELINE)
    ]
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

    assert all(
        claim["sentence"] in text for each in found["experiments"].values() for claim in each["claims"]
    )
    assert note in text
