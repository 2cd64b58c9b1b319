"""A run where the machine gives little: all of it in one run, because what counts is that it ends well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from job_helpers import ROOT, TINY_FLAGS

from limits import PATIENCE_S

# A mount namespace of its own: what is mounted here is seen by nobody else, and gone with the processes.
SETTING = """
set -euo pipefail
mount --make-rprivate /
mount -t tmpfs -o size=32m tmpfs /dev/shm
mount --bind "$1" "$1"
mount -o remount,ro,bind "$1"
! touch "$1/written" 2>/dev/null
ulimit -n 256
umask 077
cd "$2"
exec "${@:3}"
"""


def namespaces() -> bool:
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    """The files of the checkout as a tarball has them, without git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "capsdist", "jobs"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    folder = tmp_path / "tarball"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not namespaces(), reason="needs to mount in a namespace of its own: run as root")
def test_a_read_only_tarball_with_little_shared_memory_few_files_and_a_strict_umask(
    tarball: Path, tiny_root: Path, short_tmp: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    job = [sys.executable, str(tarball / "jobs/train_mnist.py"), *TINY_FLAGS]
    job += [f"--data.root={tiny_root}", "--train.num-workers=1", "--train.max-steps=3", "--train.name=strict"]
    env = {
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(tmp_path), "PYTHONPATH": str(tarball),
        "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": str(short_tmp),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    words = ["unshare", "--mount", "bash", "-c", SETTING, "bash", str(tarball), str(work), *job]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    run = work / "runs/strict"
    assert json.loads((run / "result.json").read_text())["status"] == "done"
    assert (run / "overview.png").stat().st_size > 1000
    assert {path.stat().st_mode & 0o077 for path in run.rglob("*")} == {0}
