"""A run that version 0.1 began with an official preset has equal outputs, and goes on unchanged.

`run_of_0_1` was written by the code of 0.1: `small_config` with the settings of `test_golden.official`, no
decoder, standardised images; the checkpoint is that of the first epoch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_run import losses, run_small, write_data

from capsdist.config import Config, get_preset
from capsdist.errors import ConfigError
from capsdist.runs.rundir import RunFolder
from capsdist.train.checkpoint import load_model

STORED = Path(__file__).with_name("run_of_0_1")
CHECKPOINT = STORED / "step_00000004"
EXPECTED = json.loads((STORED / "expected.json").read_text())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A copy of the run."""
    return RunFolder(shutil.copytree(STORED, tmp_path / "run_of_0_1"))


def todays(run: RunFolder, **sections: dict[str, object]) -> Config:
    """What the same command line gives today: the preset of today, and the overrides of the stored run."""
    stored, preset = run.read_config(), get_preset("cifar10_official")
    assert stored is not None
    new = {
        "model": {"primary_coupling": preset.model.primary_coupling},
        "optim": {"epsilon_placement": preset.optim.epsilon_placement},
        "data": {
            "last_batch": preset.data.last_batch,
            "validation_split": preset.data.validation_split,
        },
        "train": {"keep_best": preset.train.keep_best},
    }
    values = stored.model_dump()
    for changes in (new, sections):
        values |= {section: values[section] | changes[section] for section in changes}
    return Config.model_validate(values)


def test_a_stored_checkpoint_gives_equal_outputs() -> None:
    config, network = load_model(CHECKPOINT)
    assert not config.model.primary_coupling
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images).scores, torch.tensor(EXPECTED["scores"]), rtol=1e-5, atol=1e-6)


def test_it_goes_on_unchanged(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(Path("data"), as_version_1=True)
    config, note = run.as_begun(todays(run))
    assert note is not None
    assert (config.data.validation_split, config.train.keep_best) == ("test", 1)
    run.check_continues(config, 26)
    rows = run_small(config, tmp_path / "checkpoints", CHECKPOINT)
    assert losses(rows) == pytest.approx(EXPECTED["losses"], rel=1e-4)
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [8, 12]
    assert [row for row in rows if row["kind"] == "test"] == []


def test_the_mutant_todays_preset_would_go_on_otherwise(run: RunFolder) -> None:
    with pytest.raises(ConfigError, match="primary_coupling False -> True"):
        run.check_continues(todays(run), 26)


def test_it_goes_on_after_each_further_start(run: RunFolder) -> None:
    """The file then has the new fields, with what 0.1 did."""
    begun, note = run.as_begun(todays(run))
    run.begin(begun)
    assert run.as_begun(todays(run)) == (begun, note)


@pytest.mark.parametrize(
    "asked", [{"optim": {"learning_rate": 0.5}}, {"data": {"window": 3}}, {"train": {"precision": "bf16"}}]
)
def test_what_the_command_line_changes_is_refused_as_ever(run: RunFolder, asked) -> None:
    with pytest.raises(ConfigError, match="has another configuration"):
        run.check_continues(run.as_begun(todays(run, **asked))[0], 26)
