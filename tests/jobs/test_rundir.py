"""The folder of a run: what may change when it is started again, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from job_helpers import save_tiny

from capsdist.config import Config
from capsdist.config.steps import total_steps
from capsdist.errors import ConfigError, RunError
from capsdist.runs.rundir import RunFolder, RunSummary, changed_fields


def with_field(name: str, value: object) -> Config:
    section, field = name.split(".")
    part = getattr(Config(), section)
    return Config().model_copy(update={section: part.model_copy(update={field: value})})


def other(value: object) -> object:
    """A value that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple):
        return tuple(map(other, value)) or (1.0,)
    return 7 if value is None else f"other {value}"


FIELDS = [
    f"{section}.{name}"
    for section in Config.model_fields
    if section != "preset"
    for name in type(getattr(Config(), section)).model_fields
]
FREE = {
    "data.further_tests", "data.resident", "data.root", "routing.backend", "routing.recompute",
    "train.capsule_ranks", "train.gradient_accumulation_steps",
    "train.checkpoint_every_steps", "train.device", "train.dry_run", "train.engine", "train.health_every",
    "train.keep_best", "train.keep_checkpoints", "train.log_every_steps", "train.loggers",
    "train.microbatch_size", "train.name", "train.profile", "train.recompute", "train.speed",
    "train.storage", "train.validate_every_steps", "train.num_workers", "train.zero_stage",
    *(name for name in FIELDS if name.startswith("launch.")),
}  # fmt: skip
ENDS = {
    "train.epochs", "train.max_steps", "train.patience", "train.stop_at_error", "optim.schedule_steps",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(FIELDS) - FREE - ENDS))
def test_a_field_that_decides_the_result_may_not_change(name):
    section, field = name.split(".")
    old = getattr(getattr(Config(), section), field)
    assert changed_fields(Config(), with_field(name, other(old))) == {name: (old, other(old))}


@pytest.mark.parametrize("name", sorted(FREE | ENDS))
def test_a_field_that_does_not_may_change(name):
    section, field = name.split(".")
    old = getattr(getattr(Config(), section), field)
    assert changed_fields(Config(), with_field(name, other(old))) == {}


def test_a_run_of_another_configuration_is_refused_with_all_fields(tmp_path):
    run = RunFolder(tmp_path / "first")
    run.create()
    run.begin(with_field("train.seed", 9))
    save_tiny(run.path, 2, config=Config())
    run.check_continues(Config(), 1000)  # config.json alone decides nothing
    changed = with_field("routing.iterations", 4).model_copy(
        update={"train": Config().train.model_copy(update={"seed": 5})}
    )
    with pytest.raises(ConfigError) as caught:
        run.check_continues(changed, 1000)
    message = str(caught.value)
    assert message.startswith("train.name='first': this run has another configuration: ")
    assert "routing.iterations 3 -> 4" in message
    assert "train.seed 0 -> 5" in message
    assert message.endswith("choose another --train.name")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("train.epochs", 12, True),
        ("train.epochs", 3, True),
        ("train.epochs", 2, False),
        ("train.max_steps", 24, True),
        ("train.max_steps", 23, False),
    ],
)
def test_the_end_may_move_but_not_before_the_newest_checkpoint(tmp_path, name, value, allowed):
    run = RunFolder(tmp_path / "first")
    run.create()
    run.begin(Config())
    for step in (16, 24, 32, 40):
        save_tiny(run.path, step, config=Config())
    (run.path / "step_00000032" / "manifest.json").unlink()  # half written
    (run.path / "step_00000040" / "state.json").write_bytes(b"\xff")  # damaged
    config = with_field(name, value)
    num_samples = 8 * config.train.global_batch_size - 3
    if allowed:
        run.check_continues(config, num_samples)
        return
    with pytest.raises(
        ConfigError, match=rf"^{name}={value}: ends after step \d+, .*'first' .* 24 steps; raise"
    ):
        run.check_continues(config, num_samples)


@pytest.mark.parametrize(
    ("schedule_steps", "epochs", "now"), [(None, 10, None), (None, 12, 120), (100, 12, None), (120, 12, 120)]
)
def test_more_epochs_do_not_bend_the_schedule(tmp_path, schedule_steps, epochs, now):
    cosine = with_field("optim.schedule", "cosine")
    run = RunFolder(tmp_path / "first")
    run.create()
    run.begin(cosine)
    save_tiny(run.path, 16, config=cosine)
    optim = cosine.optim.model_copy(update={"schedule_steps": schedule_steps})
    train = cosine.train.model_copy(update={"epochs": epochs})
    config, num_samples = cosine.model_copy(update={"optim": optim, "train": train}), 10 * 128
    if now is None:
        run.check_continues(config, num_samples)
        return
    rule = f"^optim.schedule_steps={schedule_steps}: .* at step {now}, .* step 100; "
    with pytest.raises(ConfigError, match=rule + "set --optim.schedule-steps 100"):
        run.check_continues(config, num_samples)


def test_total_steps_counts_the_short_last_step():
    assert total_steps(with_field("train.epochs", 3), 129) == 6
    assert total_steps(with_field("train.max_steps", 4), 129) == 4
    assert total_steps(with_field("train.max_steps", 400), 128) == 10


def test_configuration_and_result_come_back(tmp_path):
    run = RunFolder(tmp_path / "a" / "first")
    run.create()
    assert run.read_config() is run.read_result() is None
    summary = RunSummary("first", str(run.path), "done", 7, 2.5, None, 1.5, None, [1.25, 4.75])
    run.begin(with_field("data.contrast", (0.2, 1.8)))
    run.write_result(summary)
    assert run.read_config() == with_field("data.contrast", (0.2, 1.8))
    assert run.read_result() == summary
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "result.json"]


DAMAGE = {
    "empty": b"",
    "cut": b'{"optim": {"learn',
    "binary": b"\x80\x81\xff",
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "of another version": b'{"optim": {"momentum": 0.9}, "steps": -1}',
    "a type": b'{"train": {"num_workers": "2"}, "steps": "7"}',
}


@pytest.mark.parametrize("damage", [*DAMAGE, "a folder"])
def test_a_damaged_configuration_or_result_never_stops_a_run(tmp_path, damage):
    warnings: list[str] = []
    run = RunFolder(tmp_path / "first", warnings.append)
    run.create()
    for name in ("config.json", "result.json"):
        if damage == "a folder":
            (run.path / name).mkdir()
        else:
            (run.path / name).write_bytes(DAMAGE[damage])
    assert run.read_config() is None
    run.check_continues(with_field("train.seed", 5), 1000)
    save_tiny(run.path, 7, config=with_field("train.seed", 5))
    assert run.read_config() == with_field("train.seed", 5)
    assert run.read_result() is None
    assert all(line.startswith("warning: passed over a ") and "\n" not in line for line in warnings)
    assert f"configuration: {run.path}/config.json " in warnings[0]
    assert warnings[0].endswith("; the run has no checkpoint")
    assert warnings[1].endswith("; took that of step_00000007")
    assert f"result: {run.path}/result.json " in warnings[2]
    assert len(warnings) == 3  # each once, however often the file is read


def test_a_result_that_its_checkpoint_contradicts_is_passed_over(tmp_path):
    warnings: list[str] = []
    run = RunFolder(tmp_path, warnings.append)
    summary = RunSummary("first", str(tmp_path), "done", 7, 2.5, None, 1.5)
    run.write_result(summary)
    assert run.read_result() == summary
    save_tiny(tmp_path, 7, 2.5)
    assert run.read_result() == summary
    run.write_result(replace(summary, error_percent=0.5))
    assert run.read_result() is None
    (warning,) = warnings
    assert warning.startswith("warning: passed over a result: ")
    assert warning.endswith("/result.json says error_percent 0.5, step_00000007 says 2.5")


def test_a_result_is_not_compared_with_the_error_of_another_split(tmp_path):
    warnings: list[str] = []
    run = RunFolder(tmp_path, warnings.append)
    summary = RunSummary("first", str(tmp_path), "done", 7, 2.5, None, 1.5)
    run.write_result(summary)
    save_tiny(tmp_path, 7, 1.5, config=with_field("data.validation_split", "validation"))
    assert run.read_result() == summary
    assert warnings == []


@pytest.mark.parametrize("classes", [None, ("dot", "ring")])
def test_only_a_result_of_version_0_1_has_no_checksum(tmp_path, classes):
    """Its checkpoints name no classes. From a later result the checksum was lost, and perhaps more."""
    warnings: list[str] = []
    run = RunFolder(tmp_path, warnings.append)
    summary = RunSummary("first", str(tmp_path), "done", 7, None, None, 1.5)
    save_tiny(tmp_path, 7, classes=classes)
    run.write_result(summary)
    path = tmp_path / "result.json"
    values = json.loads(path.read_text())
    del values["crc32"]
    path.write_text(json.dumps(values))
    assert run.read_result() == (summary if classes is None else None)
    assert warnings == ([] if classes is None else [f"warning: passed over a result: {path} has no checksum"])


def test_a_run_without_a_whole_checkpoint_may_begin_anew_with_another_configuration(tmp_path):
    run = RunFolder(tmp_path / "first")
    run.create()
    run.begin(Config())
    (run.path / "step_00000003").mkdir()  # half written
    run.check_continues(with_field("optim.learning_rate", 1e-4), 1000)
    save_tiny(run.path, 6, config=Config())
    with pytest.raises(ConfigError, match=r"optim.learning_rate 0.001 -> 0.0001"):
        run.check_continues(with_field("optim.learning_rate", 1e-4), 1000)


def test_a_storage_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunError, match=r"train.storage='.*file/runs': .*first: cannot be written \(Not a directory\)"
    ) as caught:
        RunFolder(tmp_path / "file" / "runs" / "first").create()
    assert str(caught.value).endswith("choose a writable folder with --train.storage")


def test_a_run_is_held_by_one_process(tmp_path):
    run = RunFolder(tmp_path / "first")
    run.create()
    code = (
        "from pathlib import Path; from capsdist.runs.rundir import RunFolder\n"
        f"with RunFolder(Path({str(run.path)!r})).lock(): print('held', flush=True); input()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(RunError, match=f"'first': this run is being trained by process {holder.pid} on "),
        run.lock(),
    ):
        pass
    holder.communicate("\n")
    with run.lock():
        pass


def test_the_steps_saved_are_those_of_the_newest_finished_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    assert run.steps_saved() == 0
    for step in (9, 100, 200, 300):
        save_tiny(tmp_path, step)
    (tmp_path / "step_00000200" / "manifest.json").unlink()
    (tmp_path / "step_00000300" / "manifest.json").write_bytes(b"[]")
    (tmp_path / "step_x").mkdir()
    assert run.steps_saved() == 100


def test_a_copied_run_may_go_on_under_the_name_of_its_copy(tmp_path):
    run = RunFolder(tmp_path / "copy")
    run.create()
    run.begin(with_field("train.name", "original"))
    run.check_continues(with_field("train.name", "copy"), 1000)


def test_a_run_that_begins_has_no_result_and_no_record_of_rays(tmp_path):
    run = RunFolder(tmp_path)
    run.write_result(RunSummary("first", str(run), "stopped", 7, None, None, 1.5))
    for name in ("checkpoint_manager_snapshot.json", "failure.txt"):
        (tmp_path / name).touch()
    run.begin(Config())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]
