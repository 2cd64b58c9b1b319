"""Jobs of a table, an ensemble or a curve, as a user starts them: --check, --smoke, killed and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_helpers import ROOT, TINY_FLAGS, run_job_file, write_tiny

from capsdist.analysis.evaluation import read_evaluation
from capsdist.runs.files import open_files
from capsdist.train.metrics import read_metrics
from capsdist.tune.journal import FINISHED, Journal


@pytest.fixture
def env(short_tmp: Path) -> dict[str, str]:
    return {**os.environ, "RAY_TMPDIR": str(short_tmp)}


def test_check_names_the_cells_and_lays_options_over_all_of_them(tmp_path: Path) -> None:
    flags = ["--columns", "mnist", "--seeds", "2", "--train.epochs=0", "--routing.backend=reference"]
    done = run_job_file("table1.py", "--check", *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    [error] = done.stderr.splitlines()
    assert error.startswith("error: train.epochs=0: ")
    flags[-2] = "--train.epochs=1"
    done = run_job_file("table1.py", "--check", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split("cells: ")[1].split()
    rows = ("baseline", "r1", "r1-reconstruction", "r3", "r3-reconstruction")
    assert names == [f"mnist-{row}-seed{seed}" for row in rows for seed in (0, 1)]
    assert list(tmp_path.iterdir()) == []
    done = run_job_file("table1.py", "--seeds=0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: seeds=0: must be at least 1; correct --seeds\n"


def test_table_1_reads_its_printed_configuration_and_a_part_of_one(tmp_path: Path) -> None:
    options = ["--train.seed=5", "--model.class-dim=8", "--routing.backend=reference"]
    printed = run_job_file("table1.py", *options, "--print-config", cwd=tmp_path)
    whole, part = tmp_path / "whole.yaml", tmp_path / "part.yaml"
    whole.write_text(printed.stdout)
    part.write_text("train: {seed: 5}\nmodel: {class_dim: 8}\nrouting: {backend: reference}\n")
    check = ["--preset=mnist_paper", "--ablations", "--seeds=1", "--check"]
    usual = run_job_file("table1.py", *options, *check, cwd=tmp_path)
    assert "valid: 18 cells: mnist-baseline-seed5 " in usual.stdout, usual.stderr
    assert "data/multimnist/train: not packed yet" in usual.stderr
    for file in (whole, part):
        done = run_job_file("table1.py", "--config", str(file), *check, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, usual.stdout, usual.stderr)
    again = run_job_file("table1.py", "--config", str(whole), "--print-config", cwd=tmp_path)
    assert again.stdout == printed.stdout
    part.write_text("preset: mnist_official\n")
    done = run_job_file("table1.py", "--config", str(part), "--check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: preset='mnist_official': is not the preset of the table; take `preset` out of the file, or "
        "give one of mnist_paper\n"
    )


def test_options_that_the_rows_of_table_1_set_are_refused(tmp_path: Path) -> None:
    remedy = "; leave it out; the rows of the table set it"
    both = ["error: routing.iterations=5", "error: model.decoder=False"]

    def refused(*words: str) -> list[str]:
        done = run_job_file("table1.py", *words, "--check", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        lines = done.stderr.splitlines()
        assert all(line.endswith(remedy) for line in lines)
        return [line.partition(": would ")[0] for line in lines]

    assert refused("--routing.iterations", "5", "--model.no-decoder") == both
    assert refused("--routing.iterations=5", "--model.decoder=false") == both
    assert refused("--model.kind", "em_capsnet") == ["error: model.kind='em_capsnet'"]
    file = tmp_path / "part.yaml"
    for preset in ("", "preset: mnist_paper\n"):
        file.write_text(f"{preset}routing: {{iterations: 5}}\nmodel: {{decoder: false}}\n")
        assert refused("--config", str(file)) == both


def test_the_depth_curve_has_no_stack_without_a_layer(tmp_path: Path) -> None:
    done = run_job_file("depth_curve.py", "--depths", "2", "0", "--remedies=none", "--check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: depths=(2, 0): must be at least 1; correct --depths\n"


@pytest.mark.slow
def test_the_smoke_form_of_table_1_trains_all_rows_of_both_columns(tmp_path, env):
    done = run_job_file("table1.py", "--smoke", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split(":")[:2] for line in lines[:2]] == [
        ["smoke", " packed mnist"], ["smoke", " packed multimnist"],
    ]  # fmt: skip
    assert all("made-up images in files of the original format" in line for line in lines[:2])
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == 2 * [
        "row", "baseline", "r1", "r1-reconstruction", "r3", "r3-reconstruction",
    ]  # fmt: skip
    assert lines[-1] == "finished 10 of 10 cells, grid table1-mini"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_smoke_form_of_the_ensemble_trains_and_adds_members(tmp_path, env):
    done = run_job_file("ensemble_cifar.py", "--smoke", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[-3:-1]] == ["members 1", "members 2"]
    assert lines[-1].startswith("error_percent ")
    assert lines[-1].endswith("  (2 members, 40 images)")
    assert list(tmp_path.iterdir()) == []


MEMBERS = [
    *TINY_FLAGS, "--model.in-channels=1", "--data.crop=0", "--train.num-workers=1", "--train.device=cpu",
    "--launch.cpus-per-worker=2", "--train.epochs=20", "--train.name=three", "--members=3",
]  # fmt: skip


@pytest.mark.slow
def test_an_ensemble_killed_after_its_first_member_goes_on_with_the_others(tmp_path, env):
    write_tiny(tmp_path / "data")
    command = [sys.executable, str(ROOT / "jobs" / "ensemble_cifar.py"), *MEMBERS]
    folder = tmp_path / "runs" / "three"
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as job:
        while job.poll() is None and not (folder / "journal.jsonl").exists():
            time.sleep(0.1)
        while job.poll() is None and not Journal(open_files(folder)).history.ended():
            time.sleep(0.1)
        assert job.poll() is None, job.communicate()
        job.kill()
    done = run_job_file("ensemble_cifar.py", *MEMBERS, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    history = Journal(open_files(folder)).history
    assert {trial.name for trial in history.ended()} == {f"member-seed{seed}" for seed in range(3)}
    assert {trial.status for trial in history.trials.values()} == {FINISHED}
    rows = read_metrics(folder / "trials" / "member-seed0" / "metrics.jsonl")
    assert len([row for row in rows if row["kind"] == "start"]) == 1
    stored = read_evaluation(folder)
    kept = json.loads((folder / "ensemble.json").read_text())
    assert stored.seeds == [0, 1, 2]
    assert kept["together"][-1] == pytest.approx(stored.error_percent)
    places = [str(folder / "trials" / f"member-seed{seed}") for seed in range(3)]
    taken = run_job_file(
        "ensemble_cifar.py",
        *MEMBERS[:-2],
        "--train.name=taken",
        "--checkpoints",
        *places,
        cwd=tmp_path,
        env=env,
    )
    assert taken.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
