"""The files of a run in a folder: links are never followed to write, damage is passed over, all told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from job_helpers import NETWORK, reseal, save_tiny
from safetensors.torch import save_file

from capsdist.errors import CheckpointError, RunError
from capsdist.runs.checkpoints import newest_verified, opened_checkpoint
from capsdist.runs.files import create, open_files
from capsdist.runs.locks import run_lock
from capsdist.runs.loggers import LoggedRun
from capsdist.runs.loggers.jsonl import JsonlLogger
from capsdist.runs.record import open_record
from capsdist.runs.retention import clean, finished_checkpoints, prune, store_checkpoint
from capsdist.runs.rundir import RunFolder, RunSummary
from capsdist.train.checkpoint import Checkpoint, EngineState, write_checkpoint
from capsdist.train.metrics import read_metrics
from faults.strikes import flip_bit
from limits import full_disk


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def archived(run: Path, step: int) -> Path:
    """Move a verified checkpoint out of the run and leave a link to it."""
    made = save_tiny(run, step, 5.0)
    archive = run.parent / "archive" / made.name
    archive.parent.mkdir(exist_ok=True)
    made.rename(archive)
    made.symlink_to(archive)
    return archive


def test_retention_takes_a_link_away_and_not_what_it_points_to(run: Path) -> None:
    archive = archived(run, 2)
    before = contents(archive)
    files = open_files(run)
    with newest_verified(files, print) as whole:
        assert whole is not None  # a link may be read
        assert whole.step == 2
    for step in (4, 6):
        save_tiny(run, step, 1.0)
    prune(files, print, keep_last=1, keep_best=1)
    assert sorted(path.name for path in run.iterdir()) == ["step_00000006"]
    assert contents(archive) == before


def test_cleaning_and_storing_follow_no_link(run: Path) -> None:
    files, archive = open_files(run), archived(run, 8)
    before = contents(archive)
    (run / ".partial-step_00000003-x").symlink_to(archive)
    (run / ".result.0123abcd.json").write_text("{")  # of a writer that was killed
    save_tiny(run, 2)
    clean(files, resumed=2)  # 8 is newer: it was passed over
    assert sorted(path.name for path in run.iterdir()) == ["step_00000002"]
    (run / "step_00000004").symlink_to(archive)
    (run / "step_00000006").write_text("a file in the place of a checkpoint")
    for step, name in ((4, "step_00000004"), (6, "step_00000006")):
        with files.staging(name) as staged:
            (staged / "manifest.json").write_text("{}")
            store_checkpoint(files, staged, step)
        assert (run / name).is_dir()
        assert not (run / name).is_symlink()
    assert contents(archive) == before
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("name", [".lock", "config.json", "metrics.jsonl"])
def test_a_link_in_the_place_of_a_file_keeps_its_target(run: Path, name: str) -> None:
    target = run.parent / "target"
    target.write_text("mine")
    (run / name).symlink_to(target)
    files = open_files(run)
    if name == ".lock":
        with pytest.raises(RunError, match=rf"^{run}/.lock is a symbolic link; remove it and start again$"):
            run_lock(files, print).__enter__()
    elif name == "config.json":
        files.write(name, b"{}")
        files.delete(name)
    else:
        with open_record(open_files(run), NETWORK, print) as write:
            write({"kind": "start", "step": 0, "resumed_step": 0})
        assert not (run / name).is_symlink()
    assert target.read_text() == "mine"


def test_a_run_whose_folder_is_a_link_works_as_any_other(run: Path) -> None:
    link = run.parent / "link"
    link.symlink_to(run)
    files = open_files(link)
    create(files)
    files.write("result.json", b"{}")
    files.delete("result.json")
    assert list(run.iterdir()) == []


def test_a_lock_that_holds_anything_can_be_taken_and_is_told_in_one_line(run: Path) -> None:
    (run / ".lock").write_bytes(b"\xff\x00\n" * 100)
    with run_lock(open_files(run), print):
        (run / ".lock").write_bytes(b"\xff\n\xfe" * 100)
        with pytest.raises(RunError, match="this run is being trained by") as caught:
            run_lock(open_files(run), print).__enter__()
    assert "\n" not in str(caught.value)
    (run / ".lock").unlink()
    (run / ".lock").mkdir()
    with pytest.raises(RunError, match=r"\.lock cannot be locked \(Is a directory\); remove it"):
        run_lock(open_files(run), print).__enter__()


@pytest.mark.parametrize("name", ["config.json", "result.json", "failure.txt", "stacks.txt",
                                  "checkpoint_manager_snapshot.json"])  # fmt: skip
def test_a_folder_in_the_place_of_a_file_is_moved_aside_and_the_run_begins(run: Path, name: str) -> None:
    (run / name / "deep").mkdir(parents=True)
    (run / name / "deep/mine").write_text("kept")
    warnings: list[str] = []
    folder = RunFolder(run, warnings.append)
    folder.create()
    with folder.lock():
        assert folder.read_result() is None
        folder.begin(NETWORK)
        folder.write_result(summary := RunSummary("run", str(run), "done", 8, None, None, 1.0))
    assert folder.read_result() == summary
    assert folder.read_config() == NETWORK
    [aside] = run.glob(f"{name}.aside-*")
    assert (aside / "deep/mine").read_text() == "kept"
    assert warnings[-1] == f"warning: {run / name} is not a file; moved it to {aside.name}"


@pytest.mark.parametrize(("name", "wanted"), [("metrics.jsonl", "a file"), ("tensorboard", "a folder")])
def test_what_lies_in_the_place_of_the_record_is_moved_aside(run: Path, name: str, wanted: str) -> None:
    (run / name).mkdir() if wanted == "a file" else (run / name).write_text("mine")
    warnings: list[str] = []
    with open_record(open_files(run), NETWORK, warnings.append) as write:
        write({"kind": "start", "step": 0, "resumed_step": 0})
    [aside] = run.glob(f"{name}.aside-*")
    assert warnings == [f"warning: {run / name} is not {wanted}; moved it to {aside.name}"]
    assert [row["kind"] for row in read_metrics(run / "metrics.jsonl")] == ["start"]
    assert (run / "tensorboard").is_dir()


def test_the_probe_of_a_killed_create_goes_at_the_next_start(run: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from capsdist.runs.files import create, open_files\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "create(open_files(sys.argv[1]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(run)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(run.iterdir())) == 1
    clean(open_files(run), None)
    assert list(run.iterdir()) == []


def mangle(folder: Path, kind: str) -> None:
    """Damage the manifest or another file of a checkpoint."""
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    if kind == "high bit":
        flip_bit(manifest, 7)
        manifest.write_bytes(bytes([manifest.read_bytes()[0] | 0x80]) + manifest.read_bytes()[1:])
    elif kind == "folder":
        manifest.unlink()
        manifest.mkdir()
    elif kind == "pipe":
        (folder / "model.safetensors").unlink()
        os.mkfifo(folder / "model.safetensors")
    elif kind == "file is a folder":
        (folder / "optimizer.safetensors").unlink()
        (folder / "optimizer.safetensors").mkdir()
    elif kind == "renamed":
        older = folder.with_name("step_00000002")
        for path in older.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    elif kind.startswith("state"):
        state = (folder / "state.json").read_text()
        changed = {
            "state type": state.replace('"step": 4', '"step": "4"'),
            "state range": state.replace('"step": 4', '"step": -4'),
            "state position": state.replace('"position": {}', '"position": []'),
            "state scale": state.replace('"loss_scale": {}', '"loss_scale": {"scale": 0}'),
            "state number": state.replace('"step": 4', '"step": NaN'),
            "state nested": "[" * 100_000,
        }[kind]
        assert changed != state
        (folder / "state.json").write_text(changed)
        reseal(folder)
    elif kind == "tensors":
        (folder / "model.safetensors").write_bytes(b"\x00" * 64)
        reseal(folder)
    elif kind in {"type", "infinite"}:
        value = torch.zeros(3, dtype=torch.float16) if kind == "type" else torch.tensor([1.0, float("inf")])
        save_file({"conv.weight": value}, folder / "model.safetensors")
        reseal(folder)
    else:
        manifest.write_text({
            "list": "[]", "no files": '{"format": 1}', "empty": "", "nested": '{"a":' * 50_000,
            "twice": text.replace('"format": 1', '"format": 1, "format": 1'),
            "size": text.replace('"bytes": ', '"bytes": -'), "digest": text.replace('128": "', '128": "x'),
            "slash": text.replace('"model.safetensors"', '"../model.safetensors"'),
        }[kind])  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [
        "high bit", "folder", "pipe", "file is a folder", "renamed", "state type", "state range",
        "state position", "state scale", "state number", "state nested", "tensors", "type", "infinite",
        "list", "no files", "empty", "nested", "twice", "size", "digest", "slash",
    ],
)  # fmt: skip
def test_a_damaged_newest_checkpoint_is_passed_over_by_name_everywhere(run: Path, kind: str) -> None:
    save_tiny(run, 2, 5.0)
    damaged = save_tiny(run, 4, 1.0)
    mangle(damaged, kind)
    files, warnings = open_files(run), list[str]()
    with newest_verified(files, warnings.append) as whole:
        assert whole is not None
        assert whole.step == 2
    for best in (False, True):
        with opened_checkpoint(str(run), lowest_error=best, log=warnings.append) as (name, _):
            assert name.endswith("step_00000002")
    assert all(line.startswith("warning: ") and "step_00000004" in line for line in warnings)
    assert all("\n" not in line and len(line) < 700 for line in warnings)
    prune(files, warnings.append, keep_last=2, keep_best=1)
    clean(files, resumed=2)
    assert [path.name for path in run.iterdir()] == ["step_00000002"]


def test_a_flipped_bit_in_an_old_state_stops_no_save(run: Path) -> None:
    for step, error in ((2, 1.0), (4, 5.0), (6, 7.0)):
        save_tiny(run, step, error)
    flip_bit(run / "step_00000002" / "state.json", 12)
    files, warnings = open_files(run), list[str]()
    assert [saved.error_percent for saved in finished_checkpoints(files, warnings.append)] == [None, 5.0, 7.0]
    (warning,) = warnings
    assert warning == (
        f"warning: the error of step_00000002 is unknown: {run}/step_00000002/state.json does not match its "
        "manifest"
    )
    prune(files, print, keep_last=1, keep_best=1)
    assert sorted(path.name for path in run.iterdir()) == ["step_00000004", "step_00000006"]


def test_damaged_lines_of_metrics_are_told_and_kept(run: Path) -> None:
    lines = [
        b'{"kind": "start", "step": 0, "resumed_step": 0}', b"\xff\xfe", b'{"kind": "train", "step": "1"}',
        b'{"kind": "train", "step": 2, "loss": 0.5}', b'{"kind": "end", "step": 2}',
        b'{"kind": "train", "step": 9, "loss": 0.5}',
    ]  # fmt: skip
    path = run / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines) + b'\n{"kind": "tr')
    warnings: list[str] = []
    assert [row["step"] for row in read_metrics(path, warnings.append)] == [0, 2, 9]
    with open_record(open_files(run), NETWORK, warnings.append) as write:
        write({"kind": "start", "step": 2, "resumed_step": 2})
        assert write.num_restarts == 1
    assert warnings == 2 * [
        f"warning: passed over line 2 of {path}: it is not UTF-8 at byte 0, and 2 more lines"
    ]
    assert path.read_bytes().splitlines()[:-1] == lines[:-1]


@full_disk()
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(run: Path) -> None:
    files = open_files(run)
    weights = {"conv.weight": torch.zeros(10_000)}
    for tensors, name in ((weights, "model"), ({}, "state")):
        state = Checkpoint(EngineState(tensors, {}), 1, 0, {"digest": "x" * 4000}, NETWORK)
        with (
            pytest.raises(CheckpointError, match=r"cannot be written \(.*; make room there") as caught,
            files.staging("step_00000001") as staged,
        ):
            write_checkpoint(staged, state)
        assert "\n" not in str(caught.value), name
    with pytest.raises(RunError, match=r"result.json: cannot be written \(File too large\); make room"):
        files.write("result.json", b" " * 4000)
    with pytest.raises(RunError, match=r"cannot be written .* choose a writable folder"):
        create(files)
    assert list(run.iterdir()) == []
    logger = JsonlLogger(LoggedRun("run", run, NETWORK, files, print))
    with pytest.raises(RunError, match="metrics cannot be written"):
        logger.log({"kind": "train", "step": 1, "note": "x" * 4000})
    warnings: list[str] = []
    with open_record(files, NETWORK, warnings.append) as record:
        record({"kind": "train", "step": 1, "note": "x" * 4000})
    [line] = warnings
    assert line.startswith("warning: logger 'jsonl' failed and is left out from now on (RunError: ")
