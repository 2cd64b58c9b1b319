"""The jobs that cluster/README.md and rayjob.yaml start have valid command lines; their names exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "cluster/README.md").read_text()


def job_commands() -> list[str]:
    """Every command line of a job in the README and in the RayJob."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)).replace("\\\n", " ")
    entrypoint = yaml.safe_load((ROOT / "cluster/kuberay/rayjob.yaml").read_text())["spec"]["entrypoint"]
    found = [
        line[line.index("python jobs/") :] for line in [*blocks.splitlines(), entrypoint] if "jobs/" in line
    ]
    return sorted(set(found))


@pytest.mark.parametrize("command", job_commands())
def test_a_job_of_the_readme_has_a_valid_command_line(command: str, tmp_path: Path) -> None:
    _, job, *flags = shlex.split(command)
    check = [sys.executable, str(ROOT / job), *flags, "--check"]
    env = os.environ | {"RAY_ADDRESS": "10.0.0.1:6379"}  # they are for a cluster: this machine has no GPU
    done = subprocess.run(check, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "configuration is valid" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"cluster/[\w./-]+\.(?:yaml|py)|cluster/kuberay/Dockerfile", README)))
)
def test_files_of_the_readme_exist(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("before", [None, 0o644])
def test_the_token_of_the_readme_is_private_whatever_was_there(before: int | None, tmp_path: Path) -> None:
    token = tmp_path / ".ray/auth_token"
    if before is not None:
        token.parent.mkdir()
        token.write_text("old and longer than any token that a machine would make by itself, sixty-four\n")
        token.chmod(before)
    commands = "\n".join(line for line in README.splitlines() if "auth_token" in line and "~/.ray" in line)
    env = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    subprocess.run(["bash", "-euc", commands], env=env, check=True)
    assert token.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(r"[0-9a-f]{64}\n", token.read_text())


def test_pins_of_the_readme_are_those_of_the_files() -> None:
    files = "".join((ROOT / "cluster" / name).read_text() for name in ("aws-gpu.yaml", "gcp-gpu.yaml"))
    pins = re.findall(r"[\w-]+==[\d.]+", README)
    assert len(pins) == 3
    assert [pin for pin in pins if pin not in files] == []
