"""DeepSpeed's CPU operator: a killed build holds up nobody, several processes build it once."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from ranks import Ranks

from capsdist.errors import DataError, RunError
from capsdist.train.engine import operators
from capsdist.train.engine.build import zero_requirements
from faults.strikes import kill_when_it_builds
from limits import full_disk

HERE = Path(__file__).parent
needs_compiler = pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements()))

# What DeepSpeed does by itself, without the lock of ours.
FOREIGN = operators._BUILD
OURS = "from capsdist.train.engine.operators import build_operators\nbuild_operators(print)\n"
TRAIN = """
import sys
from pathlib import Path
from engine_runs import build_toy, toy_steps
engine = build_toy("zero-1", gradient_accumulation_steps=1)
print("norms", *toy_steps(engine, 0, 2, gradient_accumulation_steps=1))
engine.close()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The build folder of a machine on which nothing has been built."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", os.environ.get("CXX", "c++"))
    return operators._build_folder()


def start(code: str) -> subprocess.Popen[str]:
    """Run `code` in a process group of its own."""
    import torch

    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ
        | operators._environment(torch.device("cpu"))
        | {"PYTHONPATH": os.pathsep.join(map(str, [HERE, HERE.parent]))},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.zero
@needs_compiler
def test_killed_builds_hold_up_no_run_and_of_two_processes_one_builds(folder: Path) -> None:
    kill_when_it_builds(start(FOREIGN), folder)
    assert (folder / "lock").exists()
    kill_when_it_builds(start(OURS), folder)
    assert (folder / "lock").exists()

    running = [start(OURS + TRAIN) for _ in range(2)]
    printed = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum("building DeepSpeed's CPU operator on" in text for text in printed) == 1
    assert printed[0].splitlines()[-1].startswith("norms ")
    assert printed[0].splitlines()[-1] == printed[1].splitlines()[-1]
    assert not (folder / "lock").exists()
    # built is built: another process only loads it
    built = (folder / "deepspeed_shm_comm.so").stat()
    assert "building" not in start(OURS + TRAIN).communicate()[0]
    assert (folder / "deepspeed_shm_comm.so").stat() == built


def late_build(late: int, limit_s: float, store: Path) -> float:
    """Prepare in a group with a limit that is shorter than the build of rank `late`; return the seconds."""
    import torch.distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(store), world_size),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=limit_s),
    )
    build, began = operators.load_operators, time.monotonic()
    operators.load_operators = lambda *_: time.sleep(1.5 * limit_s if rank == late else 0.0)
    try:
        operators.prepare_operators()
    finally:
        operators.load_operators = build
    return time.monotonic() - began


@pytest.mark.zero
def test_ranks_wait_for_a_build_longer_than_for_each_other(tmp_path: Path) -> None:
    limit_s = 10.0
    with Ranks(2) as two:
        for late in (0, 1):
            assert min(two.run(late_build, late, limit_s, tmp_path / f"store-{late}")) > limit_s


def test_a_lock_file_without_a_process_is_removed_and_one_in_use_is_waited_for(folder: Path) -> None:
    lock, said = folder / "lock", []
    lock.touch()
    operators._remove_stale_lock(folder, time.monotonic(), said.append, operators._no_sign)
    assert (lock.exists(), said) == (False, [])
    lock.touch()
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; file = open('lock'); print(flush=True); sys.stdin.read()"],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(
            RunError, match=r"CAPSDIST_BUILD_DEADLINE_S=1800: .* another program builds it"
        ) as caught:
            operators._remove_stale_lock(folder, time.monotonic(), said.append, operators._no_sign)
        assert "\n" not in str(caught.value)
        assert lock.exists()
        assert "waiting for DeepSpeed's CPU operator" in said[0]


@needs_compiler
def test_a_build_that_takes_too_long_is_killed_with_its_compilers(folder: Path, monkeypatch) -> None:
    compiler = folder / "compiler"
    compiler.write_text("#!/bin/sh\nexec sleep 600\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("CAPSDIST_BUILD_DEADLINE_S", "3")
    signs = []
    with (
        pytest.raises(RunError, match=r"the build in .*; raise it, or use --train.engine ddp"),
        operators._built(print, lambda: signs.append(time.monotonic())),
    ):
        pass
    assert signs[-1] - signs[0] > 1  # the watchdog hears of the build for as long as it lasts
    assert operators._builders(folder) == []
    assert not (folder / "lock").exists()


@needs_compiler
def test_a_build_that_fails_is_one_line_that_names_the_compilers_messages(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(
        RunError, match=r"could not be built; the compiler's messages are in .*build.log"
    ) as caught:
        operators.build_operators()
    assert "\n" not in str(caught.value)
    assert (folder / "build.log").stat().st_size > 0


def test_the_deadline_and_the_folder_are_checked(folder: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAPSDIST_BUILD_DEADLINE_S", "soon")
    with pytest.raises(DataError, match="CAPSDIST_BUILD_DEADLINE_S='soon'"):
        operators.build_operators()
    monkeypatch.delenv("CAPSDIST_BUILD_DEADLINE_S")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"cannot be built there .*; set TORCH_EXTENSIONS_DIR") as caught:
        operators.build_operators()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["no locks", "log", "stamp", "link"])
def test_what_the_file_system_refuses_is_one_line(folder: Path, monkeypatch, what: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(operators, "_BUILD", "")  # ends well, and at once
    if what == "no locks":
        monkeypatch.setattr(fcntl, "flock", refuse)
    elif what == "link":
        (folder / "build.log").symlink_to(folder / "target")
        (folder / "target").write_bytes(b"kept")
    elif what == "log":
        (folder / "build.log").mkdir()
    with full_disk(0 if what == "stamp" else 2000), pytest.raises(RunError) as caught:
        operators.build_operators()
    assert re.fullmatch(
        rf"{folder}.*: DeepSpeed's CPU operator cannot be built there \(.+\); set TORCH_EXTENSIONS_DIR .+",
        str(caught.value),
    )
    assert what != "link" or (folder / "target").read_bytes() == b"kept"
