"""Jobs of the paper's other sets: files in the original format are packed, checked, and trained on."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from original_files import emnist_files, original, svhn_bytes
from test_originals import write_idx_set
from test_smallnorb import made, write_split

from capsdist.cli import parse_command
from capsdist.cli.check import check_config
from capsdist.cli.main import main
from capsdist.config import Config
from capsdist.console import DONE
from capsdist.data.sets import emnist, mnist, multimnist, smallnorb, svhn
from capsdist.launch.preflight import absolute, check_data
from capsdist.train.loop import run_training

JOBS = Path(__file__).parents[2] / "jobs"
Patch = pytest.MonkeyPatch


def digits(folder: Path, patch: Patch) -> None:
    checksums, _ = write_idx_set(folder, sides=(28, 28), numbers=(8, 4))
    patch.setattr(mnist, "_SHA256", checksums)
    patch.setattr(multimnist, "_NUM_VALIDATION", 4)


def toys(folder: Path, patch: Patch) -> None:
    for seed, (split, num) in enumerate({"train": 40, "test": 60}.items()):
        patch.setitem(smallnorb._FILES, split, write_split(folder, split, **made(num, seed)))


def house_numbers(folder: Path, patch: Patch) -> None:
    for seed, (split, num) in enumerate({"train": 9, "test": 7}.items()):
        (folder / f"{split}_32x32.mat").write_bytes(svhn_bytes(num, seed)[0])
        patch.setitem(svhn._FILES, split, original(folder / f"{split}_32x32.mat"))


def letters(folder: Path, patch: Patch) -> None:
    for part in (emnist.LETTERS, emnist.BALANCED):
        for split, count in (("train", 4), ("test", 2)):
            patch.setitem(part.counts, split, (count,))
        files, _ = emnist_files(part.name, part.first_label, len(part.classes))
        for name, data in files.items():
            (folder / name).write_bytes(data)


Files = Callable[[Path, Patch], None]
SETS: dict[str, tuple[Files, str]] = {
    "multimnist": (digits, "multimnist --partners 2"),
    "multimnist_shift6": (digits, "multimnist --partners 2 --shift 6 --name multimnist_shift6"),
    "affnist_train": (digits, "affnist_train --validation 0.5 --no-whole"),
    "smallnorb": (toys, "smallnorb"),
    "smallnorb_azimuth": (toys, "smallnorb_azimuth"),
    "smallnorb_elevation": (toys, "smallnorb_elevation"),
    "svhn": (house_numbers, "svhn"),
    "emnist_letters": (letters, "emnist_letters"),
    "emnist_balanced": (letters, "emnist_balanced"),
}
PRESETS = {
    preset: job
    for job in ("multimnist", "affnist", "smallnorb", "svhn", "emnist")
    for preset in runpy.run_path(str(JOBS / f"train_{job}.py"))["PRESETS"]
}
SHRUNK = {
    "capsnet": ["--model.conv-channels=2", "--model.primary-types=1", "--model.decoder-hidden", "4", "5"],
    "em_capsnet": ["--model.conv-channels=4", "--model.primary-types=2", "--model.capsule-types", "2", "2"],
    "pooling_cnn": ["--model.conv-channels", "4", "5", "--model.dense-units=6"],
}
STEPS = ["--train.max-steps=2", "--train.global-batch-size=8", "--data.lanes=2", "--train.precision=fp32"]


def asked(preset: str, *words: str) -> Config:
    return parse_command(None, list(PRESETS), None, ["--preset", preset, *words])[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_two_steps_on_files_in_the_original_format(preset: str, tmp_path: Path, monkeypatch: Patch) -> None:
    write, command = SETS[asked(preset).data.name]
    source = tmp_path / "source"
    source.mkdir()
    write(source, monkeypatch)
    places = ["--source", str(source), "--root", str(tmp_path / "data")]
    assert main(["pack", *command.split(), *places]) == DONE
    found = [f"--data.root={tmp_path / 'data'}", f"--train.storage={tmp_path}", "--train.log-every-steps=1"]
    config = asked(preset, *found, *STEPS, *SHRUNK[asked(preset).model.kind])
    assert check_config(config) == DONE
    check_data(absolute(config))
    rows: list[dict] = []
    end = run_training(
        config, rank=0, world_size=1, device=torch.device("cpu"), events=rows.append, save=lambda *_: None
    )
    assert end["step"] == 2
    assert [row["loss"] > 0 for row in rows if row["kind"] == "train"] == [True, True]
    assert any(row["kind"] == "validation" for row in rows) == (config.data.validation_split is not None)
