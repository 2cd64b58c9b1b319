"""Starting and joining Ray where something is in the way: each for real, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from limits import PATIENCE_S

START = (
    "from capsdist.config import Config\n"
    "from capsdist.errors import RunError\n"
    "from capsdist.launch.preflight import Machine\n"
    "from capsdist.launch.session import names_cluster, prepare_ray, ray_session\n"
    "prepare_ray()\n"
    "machine = None if names_cluster() else Machine(1, 0)\n"
    "try:\n"
    "  with ray_session(Config(), machine, log=lambda text: print('told:', text)) as have:\n"
    "    print('cores:', have['CPU'])\n"
    "except RunError as error: print('error:', error)\n"
)


def start(tmp: Path, **env: str) -> list[str]:
    """Start or join Ray, with these settings; return the lines that were printed."""
    tmp.mkdir(exist_ok=True)
    # a Ray in this process, that of another module's fixture, leaves its way of authentication behind
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", START],
        env={**inherited, "RAY_TMPDIR": str(tmp), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_a_start_that_takes_too_long_is_tried_once_more(short_tmp):
    told, cores = start(short_tmp / "a", RAY_gcs_server_port_wait_time_s="0")
    assert told.startswith("told: Ray did not start (Timed out waiting for file")
    assert told.endswith("); trying once more")
    assert cores == "cores: 1.0"


@pytest.mark.slow  # Ray waits two minutes in each of two attempts
def test_a_second_start_that_fails_is_one_line(short_tmp):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:  # where Ray's GCS wants to listen
        told, error = start(short_tmp / "b", RAY_GCS_SERVER_PORT=str(server.getsockname()[1]))
    reason = "Failed to start GCS.  Last 1 lines of error files: "
    assert told.startswith(f"told: Ray did not start ({reason}")
    assert error.startswith(f"error: Ray does not start here ({reason}")
    assert error.endswith("; start the same command again when fewer programs run on this machine")


def test_a_long_temporary_folder_is_refused_at_once(short_tmp):
    [error] = start(short_tmp / ("x" * 90))
    assert "path length" in error
    assert "set RAY_TMPDIR to a folder with a shorter path" in error


def test_a_home_that_cannot_be_made_is_not_needed(short_tmp):
    assert start(short_tmp / "h", HOME="/proc/nobody") == ["cores: 1.0"]


@pytest.fixture(scope="module")
def guarded(short_tmp: Path) -> Iterator[dict[str, str]]:
    """A plain `ray start --head` of somebody who has a token: the settings to join it, without the token."""
    home, tmp = short_tmp / "home", short_tmp / "g"
    (home / ".ray").mkdir(parents=True)
    tmp.mkdir()
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    env = {
        **os.environ,
        "HOME": str(home),
        "RAY_TMPDIR": str(tmp),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=1",
        "--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false",
        "--object-store-memory=100000000",
    ]  # fmt: skip
    log = (short_tmp / "guarded.log").open("w")
    head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        while "Ray runtime started" not in (short_tmp / "guarded.log").read_text():
            assert head.poll() is None, (short_tmp / "guarded.log").read_text()
            time.sleep(0.2)
        # without the last one Ray makes this machine's address on the network of 127.0.0.1
        yield {
            "HOME": str(home),
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        log.close()


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token_says_which_variable_to_set(guarded, short_tmp):
    *_, error = start(short_tmp / "g", **guarded)
    assert "this cluster asks for a token, and RAY_AUTH_MODE is not set; set RAY_AUTH_MODE=token" in error
    assert start(short_tmp / "g", **guarded, RAY_AUTH_MODE="token")[-1] == "cores: 1.0"  # the remedy works


@pytest.mark.slow
def test_a_wrong_token_is_told_as_such(guarded, short_tmp):
    *_, error = start(short_tmp / "g", **guarded, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64)
    assert "the one of RAY_AUTH_TOKEN is missing or wrong; copy ~/.ray/auth_token of the head node" in error
    *_, error = start(short_tmp / "g", **guarded, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH="/nowhere")
    assert "the one of RAY_AUTH_TOKEN_PATH is missing or wrong" in error
