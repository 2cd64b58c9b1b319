"""Stopping: what signals do, how often workers ask, how long one waits. More: test_launch, test_jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from job_helpers import Rows, tiny_config

from capsdist.launch import RunFolder, launch
from capsdist.launch.signals import StopPoll, grace_period_s, job_warning

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
IN_JOB, JOB_WAIT = "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_STOP_WAIT_TIME_S"


def signalled(number: int, body: str) -> subprocess.CompletedProcess[str]:
    """Run `body`, which may call `strike()` to send `number` to its own process, and knows `signals`."""
    code = (
        "import os, signal\nfrom capsdist.launch.signals import StopSignals\nsignals = StopSignals()\n"
        f"def strike(): os.kill(os.getpid(), {int(number)})\n"
    )
    return subprocess.run([sys.executable, "-c", code + body], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", NUMBERS)
def test_in_training_the_first_signal_is_a_wish_and_the_second_an_end(number):
    body = (
        "with signals, signals.training() as stop_event:\n"
        "  strike(); print(stop_event.wait(5))\n"
        "  try: strike()\n"
        "  except KeyboardInterrupt: print('interrupted')\n"
    )
    assert signalled(number, body).stdout.split() == ["True", "interrupted"]


@pytest.mark.parametrize("number", NUMBERS)
def test_before_and_after_training_a_signal_ends_it(number):
    body = (
        "with signals:\n"
        "  signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # as ray.init takes it
        "  signals.take()\n"
        "  try: strike()\n"
        "  except KeyboardInterrupt: print('before')\n"
        "  with signals.training(): pass\n"
        "  try: strike()\n"
        "  except KeyboardInterrupt: print('after')\n"
    )
    assert signalled(number, body).stdout.split() == ["before", "after"]


@pytest.mark.parametrize("number", NUMBERS)
def test_outside_signals_are_what_they_were(number):
    body = (
        f"signal.signal({int(number)}, lambda *_: print('mine'))\n"
        "with signals, signals.training(): pass\n"
        "strike()"
    )
    assert signalled(number, body).stdout == "mine\n"


def test_nohup_stays():
    body = (
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with signals, signals.training() as stop_event: strike(); print(stop_event.is_set())\n"
    )
    assert signalled(signal.SIGHUP, body).stdout == "False\n"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_while_ray_starts_ends_it_afterwards_and_a_second_one_at_once(number):
    body = (
        "import ray._private.utils as utils\n"
        "with signals:\n"
        "  try:\n"
        "    with signals.starting():\n"
        "      utils.set_sigterm_handler(lambda *_: os._exit(15))\n"  # as ray.init does
        "      strike(); print('started', flush=True)\n"
        "  except KeyboardInterrupt: print('interrupted')\n"
        "  try:\n"
        "    with signals.starting():\n"
        "      os.kill(os.getpid(), signal.SIGINT); strike(); print('ended', flush=True)\n"
        "  except KeyboardInterrupt: print('interrupted')\n"
    )
    words = ["started", "interrupted", *(["ended"] if number == signal.SIGHUP else []), "interrupted"]
    assert signalled(number, body).stdout.split() == words  # a hangup is delivered at the end


def test_a_hangup_spares_the_processes_that_ray_starts():
    body = (
        "import subprocess, sys\n"
        "child = 'import os, signal; os.kill(os.getpid(), signal.SIGHUP); print(1, flush=True)'\n"
        "with signals, signals.starting(): subprocess.run([sys.executable, '-c', child], check=True)\n"
    )
    assert signalled(signal.SIGHUP, body).stdout.split() == ["1"]


def test_a_thread_may_not_take_signals():
    body = (
        "import threading\n"
        "def work():\n"
        "  with signals, signals.training() as stop_event: print(stop_event.is_set())\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
    )
    assert signalled(signal.SIGINT, body).stdout == "False\n"


@pytest.mark.parametrize(
    ("wait", "timeout_s", "patience"),
    [("60", 120.0, 58.0), ("60", 7.0, 7.0), (None, 120.0, 1.0), ("1", 120.0, 0.0), ("many", 120.0, 1.0)],
)
def test_a_job_waits_less_than_its_server(monkeypatch, wait, timeout_s, patience):
    monkeypatch.setenv(IN_JOB, "{}")
    monkeypatch.delenv(JOB_WAIT, raising=False)
    if wait is not None:
        monkeypatch.setenv(JOB_WAIT, wait)
    assert grace_period_s(timeout_s) == patience


def test_elsewhere_one_waits_as_configured(monkeypatch):
    monkeypatch.delenv(IN_JOB, raising=False)
    monkeypatch.setenv(JOB_WAIT, "3")
    assert grace_period_s(77.0) == 77.0
    assert job_warning() is None


def test_a_job_without_time_to_stop_is_warned(monkeypatch):
    monkeypatch.setenv(IN_JOB, "{}")
    monkeypatch.setenv(JOB_WAIT, "3")
    warning = job_warning()
    assert warning is not None
    assert warning.startswith(f"warning: {JOB_WAIT}=3: `ray job stop` kills this job 3 s after")
    assert f'--runtime-env-json \'{{"env_vars": {{"{JOB_WAIT}": "120"}}}}\'' in warning
    assert "\n" not in warning
    monkeypatch.setenv(JOB_WAIT, "60")
    assert job_warning() is None


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_asks_often_enough_and_not_at_every_step():
    import torch

    from capsdist.launch.events import open_event_channel

    poll = StopPoll(open_event_channel(), rank=0, world_size=1, device=torch.device("cpu"))
    asked = []
    for step in range(1, 5000):
        before = poll._next_step
        assert not poll(step)
        if poll._next_step != before:
            asked.append(step)
    gaps = [after - before for before, after in pairwise(asked)]
    assert asked[0] == 1  # there is something to save from now on
    assert all(after <= 2 * before for before, after in pairwise(gaps))  # steps to come may be slow
    assert len(asked) < 30


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_waits_for_workers_stops_at_once(tiny_root, tmp_path):
    class InterruptStart(Rows):
        def __call__(self, row: dict) -> None:
            super().__call__(row)
            if "starting 2 workers" in row.get("message", ""):
                signal.setitimer(signal.ITIMER_REAL, 3.0)  # in the midst of waiting

    struck: list[float] = []

    def strike(number: int, frame: object) -> None:
        struck.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGALRM, strike)
    try:
        config = tiny_config(tiny_root, tmp_path, "waiting", cores=2)
        summary = launch(config, display=InterruptStart())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (summary.status, summary.steps) == ("stopped", 0)
    assert time.monotonic() - struck[0] < config.launch.worker_start_timeout_s
    assert RunFolder(tmp_path / "waiting").read_result() == summary
