"""A run's files on S3: one process at a time, and checkpoints as on a disk, the manifest last."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from job_helpers import NETWORK, save_tiny
from places import Place

from capsdist.analysis.evaluation import read_evaluation
from capsdist.cli import parse_command
from capsdist.cli.main import main
from capsdist.config import Config, Data, get_preset
from capsdist.config.as_yaml import to_yaml
from capsdist.data import write_split
from capsdist.errors import ConfigError, RunError
from capsdist.export import export_run
from capsdist.inference import load
from capsdist.runs import locks
from capsdist.runs.checkpoints import newest_verified, opened_checkpoint
from capsdist.runs.files import open_files
from capsdist.runs.locks import run_lock
from capsdist.runs.retention import checkpoint_name, clean, found_checkpoints, prune, store_checkpoint
from capsdist.runs.rundir import RunFolder
from capsdist.storage import Folder, open_folder
from capsdist.train.checkpoint import MODEL
from faults.strikes import flip_bit
from limits import PATIENCE_S

pytestmark = pytest.mark.s3


@pytest.fixture
def quick_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks whose holders are heard of every 0.1 s, and dead after 2 s."""
    for name, seconds in (("_BEAT_S", 0.1), ("_SILENT_S", 2.0), ("_SETTLE_S", 0.3)):
        monkeypatch.setattr(locks, name, seconds)


@pytest.mark.usefixtures("quick_locks")
def test_a_run_is_held_by_one_process(place: Place):
    files = open_files(f"{place.url}/run")
    with run_lock(files, print) as lock:
        with pytest.raises(RunError, match=rf"^train.name='run': .* trained by process {os.getpid()} on"):
            run_lock(files, print).__enter__()
        lock.check()
    assert place.objects() == {}
    with run_lock(files, print):
        pass


@pytest.mark.usefixtures("quick_locks")
def test_the_lock_of_a_dead_process_is_taken_over(place: Place):
    files = open_files(f"{place.url}/run")
    dead = {"holder": "process 1 on gone", "id": "other", "beats": 3}
    place.put("run/.lock", json.dumps(dead).encode())
    start, told = time.monotonic(), []
    with run_lock(files, told.append):
        assert told == ["waiting 2 s to see whether process 1 on gone still trains this run"]
        assert time.monotonic() - start > 2.0
        assert json.loads(place.objects()["run/.lock"])["id"] != "other"


@pytest.mark.usefixtures("quick_locks")
@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"[]", b'{"holder": "a\\nb", "id": "x", "beats": 0}', b"{" + b" " * 5000]
)
def test_a_damaged_lock_is_named_and_taken_over(place: Place, content: bytes):
    place.put("run/.lock", content)
    told: list[str] = []
    with run_lock(open_files(f"{place.url}/run"), told.append) as lock:
        assert json.loads(place.objects()["run/.lock"])["holder"].startswith(f"process {os.getpid()} on ")
        place.put("run/.lock", content)  # damaged under its holder: that one goes on, and mends it
        end = time.monotonic() + PATIENCE_S
        while place.objects()["run/.lock"] == content and time.monotonic() < end:
            time.sleep(0.05)
        assert place.objects()["run/.lock"] != content
        lock.check()
    (warning,) = told
    assert warning.startswith(f"warning: {place.url}/run/.lock ")
    assert warning.endswith("waiting 2 s to see whether another process still trains this run")
    assert place.objects() == {}


@pytest.mark.usefixtures("quick_locks")
def test_of_two_that_take_over_one_has_it(place: Place):
    place.put("run/.lock", json.dumps({"holder": "process 1 on gone", "id": "other", "beats": 3}).encode())
    outcomes: list[bool] = []

    def contend() -> None:
        try:
            with run_lock(open_files(f"{place.url}/run"), print):
                time.sleep(3)
                outcomes.append(True)
        except RunError:
            outcomes.append(False)

    threads = [threading.Thread(target=contend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 1


@pytest.mark.usefixtures("quick_locks")
def test_a_holder_that_was_taken_for_dead_learns_of_it(place: Place):
    with run_lock(open_files(f"{place.url}/run"), print) as lock:
        lock.check()
        end = time.monotonic() + PATIENCE_S
        while lock.taken_by is None and time.monotonic() < end:
            # again and again: a beat of ours may have read the lock before and write it after
            other = {"holder": "process 1 on hale", "id": "x", "beats": 0}
            place.put("run/.lock", json.dumps(other).encode())
            time.sleep(0.05)
        with pytest.raises(RunError, match=r"^train.name='run': process 1 on hale has taken this run over"):
            lock.check()
    assert json.loads(place.objects()["run/.lock"])["id"] == "x"  # it is not ours to delete


def put_checkpoint(
    files: Folder,
    tmp_path: Path,
    step: int,
    error_percent: float,
    *,
    spoil: bool = False,
    config: Config = NETWORK,
) -> None:
    """Store a verified checkpoint, or one with a bit flipped."""
    with files.staging(checkpoint_name(step)) as staged:
        made = save_tiny(tmp_path, step, error_percent, config=config)
        if spoil:
            flip_bit(made / MODEL)
        for path in made.iterdir():
            path.rename(staged / path.name)
        store_checkpoint(files, staged, step)


def test_an_evaluation_lies_in_the_run_or_where_it_is_asked_for(place: Place, tmp_path, capsys):
    images = np.random.default_rng().integers(0, 256, (7, 1, 9, 9), dtype=np.uint8)
    write_split(tmp_path / "own" / "test", images, np.arange(7) % 3, classes=list("abc"))
    config = NETWORK.model_copy(update={"data": Data(name="own", root=str(tmp_path))})
    run, other = f"{place.url}/run", f"{place.url}/other/first.json"
    put_checkpoint(open_files(run), tmp_path, 2, 9.0, config=config)
    RunFolder(run).begin(config)
    assert main(["evaluate", run, "--device", "cpu"]) == 0
    assert f"evaluation: {run}/evaluation.json" in capsys.readouterr().out
    stored = read_evaluation(run)
    assert (stored.num_images, stored.checkpoints) == (7, [f"{run}/step_00000002"])
    assert main(["evaluate", f"{run}/step_00000002", "--device", "cpu", "--output", other]) == 0
    assert read_evaluation(other).predictions == stored.predictions
    assert {"run/evaluation.json", "other/first.json"} <= place.objects().keys()


def test_checkpoints_are_chosen_cleaned_and_pruned_as_on_a_disk(place: Place, tmp_path):
    files = open_files(f"{place.url}/run")
    for step, error in ((2, 9.0), (4, 1.0), (6, 5.0), (8, 2.0)):
        put_checkpoint(files, tmp_path, step, error)
    put_checkpoint(files, tmp_path, 10, 3.0, spoil=True)
    place.put("run/step_00000012/model.safetensors", b"cut")
    assert found_checkpoints(files)[12] is False
    warnings: list[str] = []
    with newest_verified(files, warnings.append) as whole:
        assert whole is not None
        assert (whole.step, len(list(whole.folder.iterdir()))) == (8, 4)
        folder = whole.folder
    assert not folder.exists()
    assert warnings[0] == f"warning: passed over {place.url}/run/step_00000012: it is half written"
    assert f"checkpoint {place.url}/run/step_00000010 is damaged: model.safetensors" in warnings[1]
    clean(files, resumed=8)
    prune(files, print, keep_last=1, keep_best=1)
    assert {name.split("/")[1] for name in place.objects()} == {"step_00000004", "step_00000008"}
    with opened_checkpoint(f"{place.url}/run", lowest_error=True, log=print) as (name, folder):
        assert name == f"{place.url}/run/step_00000004"
        assert (folder / "manifest.json").exists()
    with opened_checkpoint(f"{place.url}/run/step_00000004", log=print) as (name, folder):
        assert (folder / "manifest.json").exists()


def test_foreign_objects_among_checkpoints_stop_nothing(place: Place, tmp_path):
    """Markers of folders, nested objects, and damaged documents, as other programs and disks leave them."""
    files = open_files(f"{place.url}/run")
    for step in (2, 4, 6):
        put_checkpoint(files, tmp_path, step, 10.0 - step)
    for name in ("", "step_00000004/", "step_00000024/", "step_00000004/sub/model.safetensors"):
        place.put(f"run/{name}", b"")
    place.put("run/step_00000006/manifest.json", b"\xff")
    place.put("run/result.json", b"\x80")
    place.put("run/config.json", b"{")
    warnings: list[str] = []
    with newest_verified(files, warnings.append) as whole:
        assert whole is not None
        assert (whole.step, len(list(whole.folder.iterdir()))) == (4, 4)
    with opened_checkpoint(f"{place.url}/run", lowest_error=True, log=warnings.append) as (name, _):
        assert name == f"{place.url}/run/step_00000004"
    folder = RunFolder(f"{place.url}/run", warnings.append)
    assert folder.read_result() is None
    assert folder.read_config() == NETWORK
    assert folder.steps_saved() == 4
    assert f"{place.url}/run/step_00000024: it is half written" in warnings[0]
    assert f"checkpoint {place.url}/run/step_00000006 is damaged: manifest.json is not UTF-8" in warnings[1]
    assert all(line.startswith("warning: ") and "\n" not in line for line in warnings)
    place.put("runner/step_00000009/manifest.json", b"another run")
    clean(files, resumed=4)
    prune(files, warnings.append, keep_last=1, keep_best=0)
    left = {name for name in place.objects() if "step_" in name and not name.startswith("runner")}
    assert {name.split("/")[1] for name in left} == {"step_00000004"}
    assert place.objects()["runner/step_00000009/manifest.json"] == b"another run"


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_with_an_object_that_is_too_large_is_passed_over(place: Place, tmp_path, name):
    files = open_files(f"{place.url}/run")
    for step in (2, 4):
        put_checkpoint(files, tmp_path, step, 1.0)
    place.put(f"run/step_00000004/{name}", bytes((64 << 20) + 1))
    warnings: list[str] = []
    with newest_verified(files, warnings.append) as whole:
        assert whole is not None
        assert whole.step == 2
    (warning,) = warnings
    assert f"{place.url}/run/step_00000004/{name} is larger than " in warning


def test_the_manifest_is_written_last(place: Place, tmp_path):
    """A reader that sees a manifest sees all the rest: checked at every moment of many uploads."""
    objects, done = open_folder(f"{place.url}/run"), threading.Event()
    seen: list[set[str]] = []

    def watch() -> None:
        while not done.is_set():
            seen.append({name.rpartition("/")[2] for name in objects.sizes("step_")})

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(10):
        put_checkpoint(open_files(f"{place.url}/run"), tmp_path, 2, 1.0)
    done.set()
    watcher.join()
    assert any("manifest.json" not in names for names in seen if names)
    assert all(len(names) == 4 for names in seen if "manifest.json" in names)


def test_a_configuration_file_is_read(place: Place):
    config = get_preset("digits_quickstart")
    config = config.model_copy(update={"train": config.train.model_copy(update={"name": "again"})})
    place.put("seen/best.yaml", to_yaml(config).encode())
    words = ["--config", f"{place.url}/seen/best.yaml"]
    assert parse_command(None, [config.preset], None, words)[0] == config
    with pytest.raises(ConfigError, match=r"best\.yaml.': cannot be read \(No such file"):
        parse_command(None, [config.preset], None, [*words[:1], f"{words[1]}."])


def test_a_network_is_exported_to_s3_and_loaded_from_there(place: Place, tmp_path):
    put_checkpoint(open_files(f"{place.url}/run"), tmp_path, 2, 1.0)
    export_run(f"{place.url}/run", "hub", f"{place.url}/hub")
    assert set(place.objects("hub")) == {"hub/README.md", "hub/config.json", "hub/model.safetensors"}
    images = np.random.default_rng(2).integers(0, 256, (3, 1, 9, 9), dtype=np.uint8)
    found, expected = (load(f"{place.url}/{name}").predict(images).scores for name in ("hub", "run"))
    assert found.equal(expected)
    with pytest.raises(RunError, match=f"^{place.url}/hub: exists already; remove it"):
        export_run(f"{place.url}/run", "hub", f"{place.url}/hub")
    with pytest.raises(RunError, match="directly below a bucket"):
        export_run(f"{place.url}/run", "hub", "s3://bucket/hub")
