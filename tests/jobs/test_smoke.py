"""Smoke runs: what they lay over a preset, `jobs/reproduce.py`, and, slow, jobs as a user starts them."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
from job_helpers import ROOT, run_job_file

from capsdist.cli.reproduce import Outcome, commands, run_smoke, table
from capsdist.cli.smoke import check_left, smoke_config
from capsdist.config import PRESETS, get_preset, problems, with_values
from capsdist.console import DONE, FAILED
from capsdist.errors import ConfigError, RunError
from capsdist.launch.as_data import fitted
from capsdist.launch.preflight import absolute, check_data

TRAINING = sorted((ROOT / "jobs").glob("train_*.py"))
TRIED = ("affnist_paper", "multimnist_paper", "smallnorb_azimuth_baseline", "capsnet_small")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_smoke_run_of_every_preset_is_valid(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[str] = []
    monkeypatch.setattr("capsdist.data.sets.few.pack_few", lambda name, *_: packed.append(name))
    config = get_preset(preset)
    with smoke_config(config) as small:
        assert problems(small) == []
        assert (small.train.max_steps, small.train.num_workers) == (2, 1)
    assert packed[0] == config.data.name


@pytest.mark.parametrize("preset", TRIED)
def test_the_smoke_run_of_a_preset_has_its_data_and_leaves_nothing(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CAPSDIST_DATA", raising=False)
    config = with_values(get_preset(preset), {"data.root": str(tmp_path / "data")})
    with smoke_config(config) as small:
        place = Path(small.data.root).parent
        assert problems(small) == []
        check_data(absolute(fitted(small)))
        for further in config.data.further_tests:
            assert (place / "data" / further / "index.json").is_file()
        with pytest.raises(RunError, match=r"has left no overview\.png, no report\.html, "):
            check_left(small)
    assert not place.exists()
    assert list(tmp_path.iterdir()) == []
    sets = {config.data.name, *(further.partition("/")[0] for further in config.data.further_tests)}
    printed = capsys.readouterr().out.splitlines()
    assert {line.split(": ")[1].removeprefix("packed ") for line in printed} == sets


# ---- all jobs of the paper


def test_all_jobs_of_the_paper_are_known() -> None:
    found = commands(ROOT / "jobs")
    assert all(job.is_file() for job in found)
    assert {*TRAINING} < {*found}
    assert [job.stem for job in found[len(TRAINING) :]] == [
        "table1", "ensemble_cifar", "depth_curve", "compare_routings", "figures", "claims",
    ]  # fmt: skip


def test_the_table_of_smoke_forms() -> None:
    assert table([Outcome("train_a", 1.26, 0, "x"), Outcome("b", 20, 3, "y")]).splitlines() == [
        "job      seconds  result",
        "train_a      1.3  passed",
        "b           20.0  FAILED, exit status 3",
        "all         21.3  1 of 2 passed; smoke, no result",
    ]


@pytest.mark.parametrize("status", [0, 3])
def test_a_smoke_form_that_fails_is_shown_and_decides(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Jobs run in a folder that goes, and know where packed sets lie nevertheless."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAPSDIST_DATA_ROOT", raising=False)
    monkeypatch.setenv("CAPSDIST_DATA", "originals")
    words = "import os, sys; open('left', 'w'); print(sys.argv[1], os.environ['CAPSDIST_DATA_ROOT'])\n"
    (tmp_path / "first.py").write_text(words + "print(os.environ['CAPSDIST_DATA'])\n")
    (tmp_path / "second.py").write_text(f"{words}sys.exit({status})\n")
    found = run_smoke([Path("first.py"), Path("second.py")])
    assert found == (FAILED if status else DONE)
    printed = capfd.readouterr()
    assert f"first: {tmp_path}/originals\n" in printed.out
    assert f"second: --smoke {tmp_path}/data\n" in printed.out
    assert printed.out.splitlines()[-1].endswith(f"{1 if status else 2} of 2 passed; smoke, no result")
    assert printed.err == (f"--smoke {tmp_path}/data\n" if status else "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.py", "second.py"]


def test_reproduce_refuses_an_unknown_job_and_lists_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "jobs/reproduce.py"))["main"]
    with pytest.raises(ConfigError, match=r"^only='train_mnits': is no job; choose of train_affnist, "):
        main(only=("train_mnits",))
    assert main(only=("table1", "claims")) == DONE
    assert capsys.readouterr().out == f"python {ROOT}/jobs/table1.py\npython {ROOT}/jobs/claims.py\n"


# ---- as a user starts them


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "further"),
    [("train_mnist.py", ()), ("train_multimnist.py", ()), ("train_affnist.py", ("affnist", "affnist_like"))],
)
def test_the_smoke_form_of_a_job_trains_tests_and_says_so(
    job: str, further: tuple[str, ...], tmp_path: Path, short_tmp: Path
) -> None:
    env = {**os.environ, "RAY_TMPDIR": str(short_tmp)}
    env.pop("CAPSDIST_DATA", None)
    done = run_job_file(job, "--smoke", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("smoke: packed ")
    assert lines[-2].startswith("error_percent ")
    assert lines[-1].startswith("smoke: ")
    assert lines[-1].endswith(" works; 2 steps of 16 images, no result")
    for name in further:
        [line] = [line for line in lines if line.startswith(f"{name}/test: error_percent ")]
        assert line.endswith("; made up for a smoke run")
    assert list(tmp_path.iterdir()) == []
