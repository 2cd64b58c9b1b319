"""A job of a user's own is one file outside the package: capsdist/README.md, "Where to add what"."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

JOB = '''"""Train my network on my digits."""

import sys

from capsdist.cli.job import run_job

if __name__ == "__main__":
    sys.exit(run_job(__doc__, ["mnist_paper", "mnist_baseline"]))
'''


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the job from `folder`, where Ray and torch are not to be imported."""
    command = [sys.executable, "my_job.py", *words]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"RAY_ADDRESS": ""}, capture_output=True, text=True, check=False
    )


def test_a_job_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "my_job.py").write_text(JOB)
    done = run(tmp_path, "--preset", "mnist_baseline", "--check")
    assert done.returncode == 0, done.stderr
    assert "configuration is valid: preset mnist_baseline" in done.stdout
    done = run(tmp_path, "--preset", "cifar10_paper", "--check")
    assert done.returncode == 2
    assert "preset='cifar10_paper': is not a preset of this job" in done.stderr
    assert "Train my network on my digits." in run(tmp_path, "--help").stdout
