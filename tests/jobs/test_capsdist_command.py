"""The command `capsdist`, word by word, from an empty folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from job_helpers import save_tiny, write_tiny
from PIL import Image

from capsdist.cli.main import COMMANDS, main
from capsdist.console import DONE, INVALID
from capsdist.runs.rundir import RunFolder, RunSummary


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["capsdist"])


def run_of(name: str, status: str | None) -> RunFolder:
    """A run of 7 steps, with a result unless `status` is None."""
    run = RunFolder(Path("runs", name))
    run.create()
    save_tiny(run.path, 7, 2.5)
    run.begin(run.read_config())
    if status:
        run.write_result(RunSummary(name, str(run), status, 7, 2.5, 1234.5, 60.0))
    return run


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == DONE
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert main([]) == INVALID
    assert main(["trian"]) == INVALID
    assert "error: 'trian' is no command of capsdist" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_under_its_name(capsys, name):
    try:
        code = main([name, "--help"])
    except SystemExit as end:
        code = end.code
    assert code == DONE
    assert f"capsdist {name}" in capsys.readouterr().out


def test_train_takes_the_preset_as_its_first_word(capsys):
    assert main(["train", "cifar10_paper", "--print-config"]) == DONE
    assert "preset: cifar10_paper\n" in capsys.readouterr().out
    assert main(["train", "nothing"]) == INVALID
    assert capsys.readouterr().err.startswith("error: preset='nothing': is not a preset")


def test_runs_lists_state_steps_error_and_speed(capsys):
    run_of("first", "done")
    run_of("second", None)
    Path("runs", "no-run").mkdir()
    assert main(["runs"]) == DONE
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["run", "state", "steps", "error_percent", "images/s"],
        ["first", "done", "7", "2.50", "1,234"],
        ["second", "unfinished", "7", "-", "-"],
    ]
    assert main(["runs", "nowhere"]) == 1
    assert "error: nowhere: there is no such folder" in capsys.readouterr().err


def test_predict_and_evaluate_and_verify(capsys):
    run = run_of("first", "done")
    side = run.read_config().model.image_size
    Image.fromarray(np.zeros((side, side), np.uint8)).save("a.png")
    assert main(["predict", "runs/first", "a.png", "a.png"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("a.png: ")
    assert main(["predict", "runs/first", "b.png"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: b.png: is no image (")
    write_tiny(Path("data"))
    assert main(["verify"]) == DONE
    assert capsys.readouterr().out.count("intact: ") == 2
    assert main(["evaluate", "runs/nothing"]) == 1


OWN_SET = """
import numpy as np
from capsdist.data.sets.spec import DatasetSpec

def load(source, folder, command):
    draw = np.random.default_rng(1)
    return {
        split: (draw.integers(0, 256, (number, 1, 9, 9), dtype=np.uint8), np.arange(number) % 2)
        for split, number in (("train", 12), ("test", 6))
    }

OWN = DatasetSpec(name="own", title="noise", classes=("even", "odd"), load=load)
"""


def test_a_data_set_of_the_user_is_one_file(capsys, tmp_path, monkeypatch):
    Path("own_set.py").write_text(OWN_SET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_set", raising=False)
    assert main(["pack", "own_set:OWN"]) == DONE
    assert capsys.readouterr().out.count("packed: data/own/") == 2
    assert main(["verify", "data/own"]) == DONE
    options = [
        "--data.name",
        "own",
        "--model.image-size",
        "9",
        "--model.num-classes",
        "2",
        "--data.shift",
        "0",
    ]
    small = ["--model.conv-kernel", "3", "--model.primary-kernel", "3", "--train.global-batch-size", "8"]
    assert main(["train", "mnist_paper", *options, *small, "--check"]) == DONE
    assert main(["pack", "nothing"]) == INVALID
    assert "dataset='nothing': is not a data set; choose one of mnist, digits" in capsys.readouterr().err
    assert main(["pack"]) == INVALID
    assert "fashion_mnist" in capsys.readouterr().out


def test_neither_torch_nor_ray_is_imported_to_look(tmp_path: Path):
    run_of("first", "done")
    code = (
        "import sys\nfrom capsdist.cli.main import main\n"
        "assert main(['runs']) == 0\nassert main(['train', 'mnist_paper', '--print-config']) == 0\n"
        "assert main(['train', 'mnist_paper', '--check']) == 0\n"
        "print([name for name in ('torch', 'ray', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
