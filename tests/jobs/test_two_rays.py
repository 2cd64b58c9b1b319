"""A run beside another Ray on the same machine, of another user or program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from job_helpers import ROOT, TINY_FLAGS

from capsdist.runs.rundir import RunFolder
from capsdist.train.metrics import read_metrics
from limits import wait_until

# Its dashboard listens on port 8265, or another one does; Ray looks there for that of ours, which has none.
OTHER = (
    "import sys, ray\n"
    "ray.init('local', num_cpus=1, include_dashboard=True, log_to_driver=False, _temp_dir=sys.argv[1])\n"
    "print('started', flush=True)\n"
    "sys.stdin.read()\n"
)
LOOKS_S = 8.0  # of Ray Train's actor that watches the controller, one a second


def test_the_dashboard_of_another_ray_does_not_end_the_workers(
    tiny_root: Path, tmp_path: Path, short_tmp: Path
) -> None:
    run = RunFolder(tmp_path / "runs" / "beside")
    flags = [*TINY_FLAGS, f"--data.root={tiny_root}", "--train.device=cpu", "--train.name=beside"]
    command = [sys.executable, str(ROOT / "jobs/train_mnist.py"), *flags, "--train.epochs=100000"]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"RAY_TMPDIR": str(short_tmp / "a")}, **pipes
    ) as job:
        metrics = run.path / "metrics.jsonl"
        wait_until(lambda: job.poll() is not None or len(read_metrics(metrics)) > 3, "the run trained")
        beside = [sys.executable, "-c", OTHER, str(short_tmp / "b")]
        with subprocess.Popen(beside, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, **pipes) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "started\n"
            time.sleep(LOOKS_S)
            job.send_signal(signal.SIGTERM)
            printed, _ = job.communicate()
            other.communicate("")
    result = run.read_result()
    assert result is not None
    assert result.status == "stopped", printed
    assert [row["kind"] for row in read_metrics(metrics)].count("start") == 1, printed
