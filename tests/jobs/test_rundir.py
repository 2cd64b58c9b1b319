"""The folder of a run: what may change when it is started again, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from capsdist.config import Config
from capsdist.errors import CheckpointError, ConfigError, RunError
from capsdist.train.cluster.rundir import FREE_FIELDS, RunFolder, RunSummary, changed_fields, total_steps


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
    return 7 if value is None else f"other {value}" if isinstance(value, str) else tuple(v + 1 for v in value)


FIELDS = [
    f"{section}.{name}"
    for section in Config.model_fields
    if section != "preset"
    for name in type(getattr(Config(), section)).model_fields
]
FREE = {name for name in FIELDS if name in FREE_FIELDS or name.split(".")[0] in FREE_FIELDS}
ENDS = {"train.epochs", "train.max_steps"}


def test_the_free_fields_exist():
    assert {name for name in FREE_FIELDS if "." in name} <= set(FIELDS)


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
    run.begin(Config())
    save_tiny(run.path, 2, config=Config(model=SMALL))
    run.check_continues(Config(model=SMALL), 1000)
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
    for step in (16, 24, 32):
        (run.path / f"step_{step:08d}").mkdir()
        if step < 32:  # the last one is half written
            (run.path / f"step_{step:08d}" / "manifest.json").touch()
    config = with_field(name, value)
    num_samples = 8 * config.train.global_batch - 3
    if allowed:
        run.check_continues(config, num_samples)
        return
    with pytest.raises(
        ConfigError, match=rf"^{name}={value}: ends after step \d+, .*'first' .* 24 steps; raise"
    ):
        run.check_continues(config, num_samples)


def test_total_steps_counts_the_short_last_step():
    assert total_steps(with_field("train.epochs", 3), 129) == 6
    assert total_steps(with_field("train.max_steps", 4), 129) == 4
    assert total_steps(with_field("train.max_steps", 400), 128) == 10


def test_configuration_and_result_come_back(tmp_path):
    run = RunFolder(tmp_path / "a" / "first")
    run.create()
    assert run.read_config() is run.read_result() is None
    summary = RunSummary("first", str(run.path), "done", 7, 2.5, None, 1.5)
    run.begin(with_field("data.contrast", (0.2, 1.8)))
    run.write_result(summary)
    assert run.read_config() == with_field("data.contrast", (0.2, 1.8))
    assert run.read_result() == summary
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "result.json"]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"optim": {"momentum": 0.9}}', "optim.momentum=0.9: is not a field"),
        ("[]", "config=[]"),
        ("", "config=''"),
    ],
)
def test_a_configuration_that_cannot_be_read_names_file_and_field(tmp_path, text, fragment):
    run = RunFolder(tmp_path / "first")
    run.create()
    (run.path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"first/config.json: .*choose another --train.name") as caught:
        run.read_config()
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_storage_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunError, match=r"train.storage='.*file/runs': cannot write .*Not a directory"
    ) as caught:
        RunFolder(tmp_path / "file" / "runs" / "first").create()
    assert str(caught.value).endswith("choose a writable folder with --train.storage")


def test_a_run_is_held_by_one_process(tmp_path):
    run = RunFolder(tmp_path / "first")
    run.create()
    code = (
        "from pathlib import Path; from capsdist.train.cluster.rundir import RunFolder\n"
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
    for name in ("step_00000009", "step_00000100", "step_x", "tensorboard"):
        Path(tmp_path, name).mkdir()
        Path(tmp_path, name, "manifest.json").touch()
    Path(tmp_path, "step_00000200").mkdir()
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
