"""Which checkpoints are kept, which one a run continues from, what a crash leaves: rules, then folders."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from job_helpers import save_tiny

from capsdist.errors import CheckpointError, RunError
from capsdist.runs.checkpoints import newest_verified, opened_checkpoint, viewed
from capsdist.runs.files import LocalFiles, open_files
from capsdist.runs.retention import (
    Saved,
    checkpoint_name,
    checkpoint_step,
    clean,
    finished_checkpoints,
    leftovers,
    prune,
    ranked,
    to_delete,
)
from capsdist.train.checkpoint import MODEL
from faults.strikes import flip_bit


def drawn(seed: int) -> tuple[list[Saved], int, int]:
    """A shuffled list of checkpoints, some of equal error and some without, and how many to keep."""
    rng = random.Random(seed)
    steps = rng.sample(range(1, 100), rng.randint(0, 12))
    saved = [Saved(step, rng.choice([None, 1.0, 2.5, rng.random()])) for step in steps]
    return saved, rng.randint(1, 4), rng.randint(0, 3)


def kept(saved: list[Saved], keep_last: int, keep_best: int) -> set[int]:
    gone = to_delete(saved, keep_last=keep_last, keep_best=keep_best)
    assert gone == sorted(set(gone))
    return {each.step for each in saved} - set(gone)


@pytest.mark.parametrize("seed", range(30))
def test_the_newest_and_the_best_stay_and_no_others(seed):
    saved, keep_last, keep_best = drawn(seed)
    stay = kept(saved, keep_last, keep_best)
    newest = set(sorted(each.step for each in saved)[-keep_last:])
    assert newest <= stay
    others = [each for each in saved if each.step in stay - newest]
    assert len(others) <= keep_best
    gone = [each for each in saved if each.step not in stay and each.error_percent is not None]
    for stays, goes in itertools.product(others, gone):
        assert stays.error_percent is not None
        assert (stays.error_percent, -stays.step) < (goes.error_percent, -goes.step)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_kept_does_not_depend_on_when_one_looks(seed):
    """Removing after every checkpoint, as training does, keeps what removing once at the end keeps."""
    saved, keep_last, keep_best = drawn(seed)
    saved.sort(key=lambda each: each.step)
    there: list[Saved] = []
    for each in saved:
        there.append(each)
        stay = kept(there, keep_last, keep_best)
        there = [each for each in there if each.step in stay]
    assert {each.step for each in there} == kept(saved, keep_last, keep_best)


def test_a_policy_by_age_alone_would_lose_the_best():
    saved = [Saved(1, 2.0), Saved(2, 5.0), Saved(3, 4.0)]
    assert to_delete(saved, keep_last=1, keep_best=1) == [2]
    assert to_delete(saved, keep_last=1, keep_best=0) == [1, 2]  # the mutant
    assert ranked(saved) == [Saved(1, 2.0), Saved(3, 4.0), Saved(2, 5.0)]
    assert ranked([Saved(1), Saved(2)]) == []
    assert ranked([Saved(1, 2.0), Saved(2, 2.0)]) == [Saved(2, 2.0), Saved(1, 2.0)]


@pytest.mark.parametrize(
    ("found", "resumed", "left"),
    [
        ({}, None, []),
        ({3: True, 6: True}, 6, []),
        ({3: True, 6: True, 9: False}, 6, [9]),
        ({3: False, 6: True}, 6, [3]),
        ({3: True, 6: True, 9: True}, 3, [6, 9]),
        ({3: False}, None, [3]),
    ],
)
def test_what_is_half_written_or_was_passed_over_goes(found, resumed, left):
    assert leftovers(found, resumed) == left


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_00000012", 12),
        ("step_123456789", 123456789),
        ("step_12", None),
        ("step_x", None),
        ("best", None),
    ],
)
def test_names_of_checkpoints(name, step):
    assert checkpoint_step(name) == step
    if step is not None:
        assert checkpoint_name(step) == name


def newest(run: Path) -> tuple[int | None, list[str]]:
    warnings: list[str] = []
    with newest_verified(LocalFiles(run), warnings.append) as whole:
        assert whole is None or whole.folder == run / checkpoint_name(whole.step)
        return (whole.step if whole else None), warnings


def test_the_newest_whole_checkpoint_is_found_behind_damaged_and_half_written_ones(tmp_path):
    assert newest(tmp_path) == (None, [])
    for step in (2, 4, 6, 8):
        save_tiny(tmp_path, step)
    assert newest(tmp_path) == (8, [])
    flip_bit(tmp_path / "step_00000006" / MODEL)
    (tmp_path / "step_00000008" / "manifest.json").unlink()
    step, warnings = newest(tmp_path)
    assert step == 4
    assert warnings[0] == f"warning: passed over {tmp_path}/step_00000008: it is half written"
    assert f"checkpoint {tmp_path}/step_00000006 is damaged: model.safetensors" in warnings[1]
    assert not any("\n" in warning or "resume from" in warning for warning in warnings)


def test_nothing_is_begun_anew_where_all_are_damaged(tmp_path):
    flip_bit(save_tiny(tmp_path, 2) / MODEL)
    (tmp_path / "step_00000004").mkdir()
    with pytest.raises(
        CheckpointError, match=r"all checkpoints are damaged \(step_00000002, step_00000004\); bring"
    ):
        newest(tmp_path)


def test_a_first_checkpoint_that_was_never_finished_is_none(tmp_path):
    (tmp_path / "step_00000002").mkdir()
    step, [warning] = newest(tmp_path)
    assert step is None
    assert "half written" in warning


def test_folders_are_cleaned_and_pruned(tmp_path):
    for step, error in ((2, 9.0), (4, 1.0), (6, 5.0), (8, None), (10, 7.0)):
        save_tiny(tmp_path, step, error)
    for name in ("step_00000012", "step_00000003", ".partial-step_00000012", "tensorboard"):
        (tmp_path / name).mkdir()
    files = LocalFiles(tmp_path)
    clean(files, resumed=8)
    prune(files, print, keep_last=2, keep_best=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00000004", "step_00000006", "step_00000008", "tensorboard",
    ]  # fmt: skip


def test_an_error_counts_for_the_weights_that_were_validated(tmp_path):
    save_tiny(tmp_path, 4, 1.0)
    save_tiny(tmp_path, 6, 1.0, validated_step=4)
    assert finished_checkpoints(LocalFiles(tmp_path), print) == [Saved(4, 1.0), Saved(6, None)]


def opened(place: str, **options: bool) -> str:
    with opened_checkpoint(place, log=lambda text: None, **options) as (name, folder):
        assert (folder / "manifest.json").exists()
        return name


def test_a_place_means_a_checkpoint(tmp_path):
    for step, error in ((2, 1.0), (4, 3.0)):
        save_tiny(tmp_path, step, error)
    assert opened(str(tmp_path)) == f"{tmp_path}/step_00000004"
    assert opened(f"{tmp_path}/") == f"{tmp_path}/step_00000004"
    assert opened(str(tmp_path), lowest_error=True) == f"{tmp_path}/step_00000002"
    assert opened(f"{tmp_path}/step_00000002") == f"{tmp_path}/step_00000002"
    flip_bit(tmp_path / "step_00000004" / MODEL)
    assert opened(str(tmp_path)) == f"{tmp_path}/step_00000002"


def test_a_folder_without_a_checkpoint_is_said_to_have_none(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError, match=rf"^no checkpoint below {tmp_path}; give a checkpoint"):
        opened(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"^no checkpoint below .*/none; give a checkpoint"):
        opened(str(tmp_path / "none"))


def test_a_run_without_validation_has_no_best(tmp_path):
    save_tiny(tmp_path, 2)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint was validated; take the newest, without --best"
    ):
        opened(str(tmp_path), lowest_error=True)


def test_a_checkpoint_appears_whole_and_replaces_an_old_one(tmp_path):
    files = open_files(f"file://{tmp_path}")
    (tmp_path / "step_00000002").mkdir()
    (tmp_path / "step_00000002" / "stale").touch()
    with files.staging("step_00000002") as staged:
        (staged / "manifest.json").write_text(json.dumps({}))
        assert files.folders("step_") == {"step_00000002": False}
        files.store(staged, "step_00000002")
    assert [path.name for path in (tmp_path / "step_00000002").iterdir()] == ["manifest.json"]
    assert files.folders("step_") == {"step_00000002": True}
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]
    with viewed(files, print) as folder:
        assert folder == tmp_path


def test_a_worker_that_was_given_up_and_wakes_up_late_does_no_harm(tmp_path):
    files = open_files(tmp_path)
    with files.staging("step_00000002") as late:
        files.remove_staged()  # its successor begins
        with files.staging("step_00000002") as staged:
            (staged / "manifest.json").write_text("")
            with pytest.raises(RunError, match=r"is gone, because another start of this run has taken over"):
                files.store(late, "step_00000002")
            files.store(staged, "step_00000002")
            with pytest.raises(RunError, match=r"is gone"):
                files.store(late, "step_00000002")
    assert files.folders("step_") == {"step_00000002": True}
