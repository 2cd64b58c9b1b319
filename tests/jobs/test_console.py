"""What all commands share: output in any encoding, Ctrl-C, a line while one waits; load_model's refusals."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from job_helpers import ROOT, run_job_file, save_tiny, tiny_config

from capsdist.console import INVALID, STOPPED, announced
from capsdist.errors import CheckpointError
from capsdist.train.checkpoint import load_model
from capsdist.train.display import Display
from capsdist.train.evaluate import evaluate_checkpoint
from capsdist.tune.progress import SearchDisplay

ASCII = {**os.environ, "PYTHONIOENCODING": "ascii"}


def run_code(code: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys\nfrom capsdist.console import run_program\n" + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)  # type: ignore[call-overload]


def test_characters_that_the_output_does_not_have_are_escaped():
    body = "print('\\xe9'); print('\\u65e5', file=sys.stderr); return 7"
    code = f"def main():\n  {body}\nsys.exit(run_program(main))"
    done = run_code(code, env=ASCII)
    assert (done.returncode, done.stdout, done.stderr) == (7, "\\xe9\n", "\\u65e5\n")


def test_ctrl_c_is_one_line():
    code = "import os, signal\nsys.exit(run_program(lambda: os.kill(os.getpid(), signal.SIGINT) or 0))"
    done = run_code(code)
    assert (done.returncode, done.stdout, done.stderr) == (STOPPED, "", "stopped\n")


ALIKE = {path.name for path in ROOT.glob("jobs/train_*.py")} - {"train_mnist.py"}
ALIKE |= {path.name for path in ROOT.glob("data_prep/pack_*.py")} - {"pack_digits.py", "pack_mnist.py"}
ALIKE |= {path.name for path in ROOT.glob("jobs/bench_*.py")} - {"bench_tune.py"}
COMMANDS = [
    path
    for path in sorted(ROOT.glob("*/*.py"))
    if path.parent.name in {"jobs", "cluster", "data_prep"} and path.name not in ALIKE
]
INTERRUPTED = """
import argparse, os, runpy, signal, sys
import tyro
def interrupt(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
tyro.cli = tyro.extras.overridable_config_cli = argparse.ArgumentParser.parse_args = interrupt
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_ctrl_c_ends_every_command_in_one_line(path: Path, tmp_path: Path):
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (STOPPED, "", "stopped\n")


@pytest.mark.parametrize("kind", [Display, SearchDisplay])
def test_a_display_writes_to_any_stream(kind):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    kind(stream)({"kind": "note", "message": "runs/é"})
    assert raw.getvalue() == b"runs/\\xe9\n"


def test_a_display_whose_reader_has_gone_ends_no_run():
    reader, writer = os.pipe()
    os.close(reader)
    display = Display(open(writer, "w"), plain=True)  # noqa: SIM115
    display({"kind": "note", "message": "a line"})
    os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


def test_a_line_comes_only_where_one_waits():
    told, waiting = [], threading.Event()

    def log(text: str) -> None:
        told.append(text)
        waiting.set()

    with announced(log, "soon done", after_s=100):
        pass
    with announced(log, "still at it", after_s=0.01):
        assert waiting.wait(60)
    time.sleep(0.05)
    assert told == ["still at it"]


@pytest.mark.parametrize("size", ["0", "-1"])
def test_evaluate_refuses_batches_without_images(tmp_path, size):
    save_tiny(tmp_path / "run", 3)
    done = run_job_file("evaluate.py", "run", f"--batch-size={size}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (INVALID, "")
    assert f"error: batch_size={size}: must be at least 1; " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("run", "is a run; give one of its checkpoints, such as run/step_00000003"),
        (Path("run"), "is a run"),
        ("nowhere", "no checkpoint at nowhere; "),
        ("s3://bucket/run/step_00000003", "s3://bucket/run/step_00000003: is a URL; "),
        ("run/step_00000003/model.safetensors", "is a file; "),
        (3, "checkpoint 3: is not a path; "),
        (None, "checkpoint None: is not a path; "),
    ],
)
def test_load_model_takes_the_folder_of_a_checkpoint(tmp_path, monkeypatch, place, reason):
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("run"), 3)
    load_model("run/step_00000003")
    load_model(Path("run/step_00000003"))
    with pytest.raises(CheckpointError) as caught:
        load_model(place)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_evaluation_that_takes_longer_says_how_far_it_is(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr("capsdist.train.evaluate._QUIET_S", 0.0)
    folder = save_tiny(tmp_path / "run", 3, config=tiny_config(tiny_root, tmp_path, "run"))
    told: list[str] = []
    evaluate_checkpoint(folder, tiny_root / "tiny" / "test", device="cpu", batch_size=10, log=told.append)
    lines = [line for line in told if line.startswith("evaluated")]
    assert lines == ["evaluated 0 of 23 images", "evaluated 10 of 23 images", "evaluated 20 of 23 images"]
