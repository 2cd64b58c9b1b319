"""jobs/tune_routing.py on the command line: --check, refusals, and what it offers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from job_helpers import TINY_FLAGS, run_job_file, write_tiny

from capsdist.cli.tune import DEFAULT, OFFERED

JOB = "tune_routing.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_tiny(folder / "data")
    return folder


def test_check_says_what_can_be_trained_and_leaves_nothing_behind(place):
    flags = ["--check", "--space.class-dim", "4", "300", "--search.max-parameters", "9000"]
    done = run_job_file(JOB, *TINY_FLAGS, "--train.num-workers=1", *flags, cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("configuration is valid: preset digits_quickstart, run 'tune-quickstart'; ")
    assert lines[1] == "of all 2 points 1 can be trained"
    assert lines[2].startswith("infeasible: class_dim 300: ")
    assert [path.name for path in place.iterdir()] == ["data"]


def test_check_does_without_ray(place, tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError('Ray was imported')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    flags = [*TINY_FLAGS, "--train.num-workers=1", "--space.iterations", "1", "3"]
    done = run_job_file(JOB, *flags, "--check", cwd=place, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Ray was imported" in run_job_file(JOB, *flags, cwd=place, env=env).stderr  # a search needs it


def test_check_prints_every_problem_of_both_kinds(place):
    flags = ["--check", "--train.num-workers=0", "--search.scheduler=pb2", "--space.iterations", "3", "3"]
    done = run_job_file(JOB, *flags, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    fields = [line.split("=")[0] for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert fields == ["error: train.num_workers", "error: search.scheduler", "error: space.iterations"]


def test_a_search_that_cannot_be_is_refused_in_one_line(place):
    done = run_job_file(JOB, *TINY_FLAGS, "--search.scheduler=pbt", cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: search.scheduler='pbt': copies Tune checkpoints, which trials that are Ray Train runs do not "
        "have: it would do nothing; set --search.scheduler asha\n"
    )


@pytest.mark.parametrize("more", [[], ["--check"]])
def test_a_search_without_validation_is_refused_with_the_command_of_the_packer(tmp_path, more):
    done = run_job_file(JOB, "--preset=mnist_paper", *more, cwd=tmp_path)
    assert done.returncode == 2
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: data.validation_split=None: has no validation, ")
    assert "pack mnist --validation 0.1`" in error
    assert error.endswith("--data.train-split train_part, then set --data.validation-split validation")
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_a_failure_in_one_line(tmp_path):
    done = run_job_file(JOB, *TINY_FLAGS, cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_every_preset_with_routing_is_offered():
    assert "mnist_baseline" not in OFFERED
    assert {"digits_quickstart", "mnist_paper", "cifar10_official", "smallnorb_em"} <= set(OFFERED)
    assert DEFAULT in OFFERED


def check_default_space(preset: str, source: str, place: Path) -> None:
    """Check the search that `source` starts from: 500 points of the space around `preset` are valid."""
    small = ["--train.num-workers=1", "--train.global-batch-size=8", "--train.name=small"]
    done = run_job_file(JOB, source, *small, "--check", cwd=place)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith(f"configuration is valid: preset {preset}, run 'small'; ")
    assert second == "of the first 500 points 500 can be trained"


@pytest.mark.parametrize("preset", ["digits_em", "digits_conv"])
def test_the_default_space_of_other_capsules_can_be_trained(preset, place):
    check_default_space(preset, f"--preset={preset}", place)


def test_a_search_starts_from_the_printed_configuration_of_a_training(place, tmp_path):
    printed = run_job_file("train_mnist.py", "--preset=digits_em", "--print-config", cwd=place)
    assert printed.returncode == 0, printed.stderr
    file = tmp_path / "em.yaml"
    file.write_text(printed.stdout)
    check_default_space("digits_em", f"--config={file}", place)
