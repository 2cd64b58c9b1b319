"""The command line of jobs: presets, overrides, files, --check, and that it stays light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from job_helpers import ROOT, reseal, save_tiny, write_tiny

from capsdist.cli import parse_command, run_job
from capsdist.config import PRESETS, BaselineCNNConfig, Config, get_preset, problems
from capsdist.console import DONE, FAILED, INVALID
from kinds_of_presets import VARIED

MNIST = ("mnist_paper", "digits_quickstart")
FLAGS = [
    f"--{section}.{name}"
    for section in Config.model_fields
    if section != "preset"
    for name in type(getattr(Config(), section)).model_fields
]


def parse(*argv: str) -> Config:
    return parse_command("A job.", MNIST, None, argv)[0]


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *fragments: str) -> None:
    assert run_job("A job.", MNIST, argv=argv) == INVALID
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert all(fragment in errors[0] for fragment in fragments), errors


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CAPSDIST_DATA_ROOT", "CAPSDIST_STORAGE"):
        monkeypatch.delenv(name, raising=False)


def test_the_first_preset_is_the_default():
    assert parse() == get_preset("mnist_paper")
    assert parse_command("A job.", MNIST, "digits_quickstart", [])[0] == get_preset("digits_quickstart")


@pytest.mark.parametrize("argv", [["--preset", "digits_quickstart"], ["--preset=digits_quickstart"]])
def test_a_preset_by_name(argv):
    assert parse(*argv) == get_preset("digits_quickstart")


def test_overrides_are_typed_and_leave_the_rest_of_the_preset():
    config = parse("--preset", "digits_quickstart", "--routing.iterations", "5", "--model.no-decoder")
    preset = get_preset("digits_quickstart")
    assert (config.routing.iterations, config.model.decoder) == (5, False)
    assert config.optim == preset.optim
    assert config.preset == "digits_quickstart"


def test_pairs_and_empty_values():
    config = parse(
        "--data.contrast", "0.2", "1.8", "--train.max-steps", "7", "--train.checkpoint_every_steps", "3"
    )
    assert (config.data.contrast, config.train.max_steps) == ((0.2, 1.8), 7)
    assert config.train.checkpoint_every_steps == 3
    assert parse("--train.max-steps", "None").train.max_steps is None


def test_the_environment_names_data_and_storage_and_options_win(monkeypatch):
    monkeypatch.setenv("CAPSDIST_DATA_ROOT", "s3://bucket/data")
    monkeypatch.setenv("CAPSDIST_STORAGE", "/mnt/runs")
    config = parse()
    assert (config.data.root, config.train.storage) == ("s3://bucket/data", "/mnt/runs")
    config = parse("--data.root", "data", "--train.storage=runs")
    assert (config.data.root, config.train.storage) == ("data", "runs")
    stored = get_preset("mnist_paper")  # what a run was started with stays, wherever it is continued
    Path("config.json").write_text(stored.model_dump_json())
    assert parse("--config", "config.json") == stored


def test_help_shows_every_field_and_every_preset(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse("--help")
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert [flag for flag in FLAGS if flag.replace("_", "-") not in text] == []
    assert all(name in text for name in MNIST)


def test_an_unknown_option_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse("--train.wrokers", "3")
    text = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "--train.wrokers" in text
    assert "--train.num-workers" in text


def test_a_value_of_another_type_is_named(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse("--train.num-workers", "two")
    assert exit_.value.code == 2
    assert "two" in capsys.readouterr().err


def test_an_unknown_preset_lists_those_of_the_job(capsys):
    refused(capsys, ["--preset", "cifar10_paper"], "preset='cifar10_paper'", "mnist_paper, digits_quickstart")


def test_a_configuration_file_is_the_base_of_overrides(tmp_path):
    stored = parse("--routing.iterations", "4", "--train.name", "mine", "--preset", "digits_quickstart")
    Path("config.json").write_text(stored.model_dump_json())
    config = parse("--config", "config.json", "--train.seed=3")
    assert config == stored.model_copy(update={"train": stored.train.model_copy(update={"seed": 3})})


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ('{"train": {"epoch": 3}}', ("train.epoch=3", "is not a field", "remove it")),
        ('{"train": {"epochs": "many"}}', ("train.epochs='many'", "valid integer")),
        ("{", ("config='config.json'", "is not JSON", "name a YAML or JSON file")),
        ("# capsdist " * 100, ("config='config.json': is not JSON",)),
    ],
)
def test_a_faulty_configuration_file_names_the_field(capsys, text, fragments):
    Path("config.json").write_text(text)
    refused(capsys, ["--config", "config.json"], *fragments)


def test_a_configuration_file_beside_a_preset(capsys):
    Path("config.json").write_text(get_preset("mnist_paper").model_dump_json())
    argv = ["--config", "config.json", "--preset=digits_quickstart"]
    refused(capsys, argv, "preset='digits_quickstart'", "a configuration file of preset", "leave it out")


@pytest.mark.parametrize("field", ["data.root", "train.storage", "the working folder"])
def test_a_folder_whose_name_is_not_utf8_is_refused_and_a_link_to_it_is_not(
    capsys, tmp_path, monkeypatch, field
):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    if field == "the working folder":  # runs and data lie below it
        monkeypatch.chdir(folder)
        shown, argv = "data.root", [f"--{name}={tmp_path}/link" for name in ("data.root", "train.storage")]
        before: list[str] = []
    else:
        shown, before, argv = field, [f"--{field}={folder}"], [f"--{field}={tmp_path}/link"]
    assert run_job("A job.", ["digits_quickstart"], argv=["--check", *before]) == INVALID
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith(f"error: {shown}='{tmp_path}/caf\\udce9"), line
    assert line.endswith(
        f"rename that folder, or set --{shown} to the absolute path of a symbolic link to it"
    )
    assert run_job("A job.", ["digits_quickstart"], argv=["--check", *argv]) == DONE


def test_part_of_a_configuration_as_yaml_lies_over_the_preset_and_under_the_options():
    Path("mine.yaml").write_text(
        "# mine\nrouting: {iterations: 2}\noptim:\n  learning_rate: 2e-3\ntrain:\n  seed: 5\n  epochs: 3\n"
    )
    config = parse("--preset", "digits_quickstart", "--config", "mine.yaml", "--train.seed", "6")
    expected = get_preset("digits_quickstart")
    expected = expected.model_copy(
        update={
            "routing": expected.routing.model_copy(update={"iterations": 2}),
            "optim": expected.optim.model_copy(update={"learning_rate": 0.002}),
            "train": expected.train.model_copy(update={"seed": 6, "epochs": 3}),
        }
    )
    assert config == expected
    assert parse("--config", "mine.yaml").preset == MNIST[0]


def test_a_configuration_file_may_choose_the_family():
    Path("mine.yaml").write_text("model: {kind: baseline_cnn, dropout: 0.25}\n")
    assert parse("--config", "mine.yaml").model == BaselineCNNConfig(dropout=0.25)


@pytest.mark.parametrize("preset", VARIED)
def test_a_printed_configuration_is_read_again(capsys, preset):
    assert run_job("A job.", list(PRESETS), argv=["--preset", preset, "--print-config"]) == DONE
    text = capsys.readouterr().out
    Path("printed.yaml").write_text(text)
    config, _ = parse_command("A job.", list(PRESETS), None, ["--config", "printed.yaml"])
    assert config == get_preset(preset)
    if preset == "mnist_paper":
        assert "paper: 3. Read by dynamic, inverted, heinsen, grouped.\n  iterations: 3\n" in text


BOMB = "a: &a [x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join(8 * ['*' + p])}]\n" for p, n in pairwise("abcdefghi")
)


@pytest.mark.parametrize(("text", "part"), [
    ("- 1", "config='mine.yaml': holds no mapping of sections"), ("a: [", "config='mine.yaml': is not YAML"),
    ("train: {seed: 1, seed: 2}", "seed='seed': occurs twice in one mapping (line 1)"),
    ("train: 3", "train=3: "), ("trian: {seed: 1}", "trian={'seed': 1}: is not a field of this version"),
    ("train: {seed: .nan}", "has the number NaN"), ("train: {seed: 2026-11-28}", "train.seed='2026-11-28'"),
    (BOMB, "because its aliases repeat them"),
])  # fmt: skip
def test_a_faulty_yaml_file_is_refused_in_one_line(capsys, text, part):
    Path("mine.yaml").write_text(text)
    refused(capsys, ["--config", "mine.yaml"], part)


def test_a_configuration_file_of_another_job(capsys):
    Path("config.json").write_text(get_preset("cifar10_paper").model_dump_json())
    refused(capsys, ["--config", "config.json"], "preset='cifar10_paper'", "is not a preset of this job")


def test_a_configuration_file_made_by_hand():
    Path("config.json").write_text(Config().model_dump_json())
    assert parse("--config", "config.json") == Config()


def test_a_configuration_file_that_is_not_there(capsys):
    refused(capsys, ["--config", "none.json"], "config='none.json'", "No such file")


def test_check_names_problems_of_data_machine_and_values_together(capsys):
    write_tiny(Path("data"), name="digits")
    argv = ["--check", "--routing.iterations=0", "--train.num-workers=99", "--train.global-batch-size=4096"]
    argv += ["--data.train-split=train", "--data.validation-split=test"]
    assert run_job("A job.", ["digits_quickstart"], argv=argv) == INVALID
    shown = capsys.readouterr().err
    for part in (
        "routing.iterations=0",
        "train.num_workers=99: needs",
        "train.global_batch_size=4096: is more than",
    ):
        assert f"error: {part}" in shown


def test_check_accepts_and_warns_of_what_is_missing(capsys):
    assert run_job("A job.", MNIST, argv=["--check"]) == DONE
    shown = capsys.readouterr()
    assert "configuration is valid" in shown.out
    assert "not looked at before it starts: images and labels, the content of checkpoints" in shown.out
    assert "data/mnist/train: not packed yet; pack it with `" in shown.err
    assert "capsdist pack mnist`" in shown.err
    assert list(Path().iterdir()) == []  # checking leaves nothing behind


def test_check_prints_every_problem(capsys):
    argv = ["--check", "--train.num-workers", "0", "--optim.learning-rate=-1", "--data.lanes", "7"]
    assert run_job("A job.", MNIST, argv=argv) == INVALID
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert [error.split("=")[0] for error in errors] == [
        "error: optim.learning_rate", "error: train.num_workers", "error: data.lanes",
    ]  # fmt: skip
    assert "valid" not in shown.out


def test_check_warns_of_a_storage_that_is_no_folder(capsys):
    Path("file").write_text("")
    assert run_job("A job.", MNIST, argv=["--check", "--train.storage", "file/runs"]) == DONE
    assert "is not a writable folder" in capsys.readouterr().err


def test_check_refuses_a_run_with_another_configuration(capsys):
    save_tiny(Path("runs/mnist"), 2, config=parse("--train.seed=1"))
    refused(capsys, ["--check"], "this run has another configuration: train.seed 1 -> 0")


@pytest.mark.parametrize("field", ["data.root", "train.storage"])
@pytest.mark.parametrize(
    ("place", "fragment"),
    [
        ("s3:/bucket/runs", "would be a local folder"),
        ("s3://", "does not name a bucket"),
        ("s3:///runs", "does not name a bucket"),
        ("gs://bucket/runs", "gs:// is not supported"),
        ("s3://me:hidden@bucket/runs", "credentials do not belong in a URL"),
    ],
)
def test_a_place_that_cannot_be(capsys, field, place, fragment):
    assert run_job("A job.", MNIST, argv=["--check", f"--{field}={place}"]) == INVALID
    shown = capsys.readouterr()
    assert f"error: {field}=" in shown.err
    assert fragment in shown.err
    assert "hidden" not in shown.out + shown.err


@pytest.mark.parametrize(
    "place", ["runs", "/mnt/runs", "file:///mnt/runs", "s3://bucket", "s3://b/a?x=1", "c:x"]
)
def test_a_place_that_can_be(place):
    config = parse(f"--train.storage={place}")
    assert problems(config) == []


def test_a_configuration_file_is_no_web_page(capsys):
    url = "https://host/config.json"
    refused(capsys, ["--config", url], f"config={url!r}: cannot be read (", "name a YAML or JSON file")


def test_a_reader_that_leaves_a_help_sees_no_traceback(repo):
    command = f"{sys.executable} {repo}/jobs/train_mnist.py --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_check_refuses_a_run_of_another_version(capsys):
    folder = save_tiny(Path("runs/mnist"), 2)
    state = json.loads((folder / "state.json").read_text())
    state["config"]["train"]["momentum"] = 0.9
    (folder / "state.json").write_text(json.dumps(state))
    reseal(folder)
    assert run_job("A job.", MNIST, argv=["--check"]) == FAILED
    assert "train.momentum is not a field of this version; use the version" in capsys.readouterr().err


def test_check_warns_of_a_damaged_configuration(capsys):
    Path("runs/mnist").mkdir(parents=True)
    Path("runs/mnist/config.json").write_bytes(b"\xff\x00")
    assert run_job("A job.", MNIST, argv=["--check"]) == DONE
    warning = "runs/mnist/config.json is not UTF-8 at byte 0; the run has no checkpoint"
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize("job", ["train_mnist", "train_fashion_mnist", "train_cifar"])
def test_check_imports_neither_torch_nor_ray(job):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{job}.py', '--check']\n"
        f"try: runpy.run_path({str(ROOT / 'jobs' / job)!r} + '.py', run_name='__main__')\n"
        "except SystemExit as exit: print(exit.code)\n"
        "print(sorted({'torch', 'ray', 'numpy', 'deepspeed', 'matplotlib'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1:] == ["0", "[]"]
