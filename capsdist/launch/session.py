"""Start Ray on this machine for one run, or join the cluster that RAY_ADDRESS names.

A local Ray listens on the loopback interface only, has no dashboard, and ends with the run; a cluster
is joined and left as it is. Settings of Ray Train travel as environment variables, so they are set here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from capsdist.config import Config
from capsdist.console import Log, announced
from capsdist.errors import RunError
from capsdist.launch.failure import first_line
from capsdist.launch.preflight import Machine
from capsdist.storage.temporary import remove_stale_folders, temporary_folder

__all__ = ["API_ADDRESS", "names_cluster", "prepare_ray", "ray_session"]

API_ADDRESS = "RAY_API_SERVER_ADDRESS"
"""Names Ray's state API. Without it Ray looks on the whole machine: in vain if there are two Rays, and for
one without a dashboard on port 8265, where the dashboard of any other Ray may answer."""
_NOWHERE = "127.0.0.1:0"  # where nothing ever answers

_KNOCK_S = 5.0
_NICENESS = "RAY_worker_niceness"
_LONGEST_PARENT = 21  # characters: the names of Ray's sockets have 86 more, and 107 at most
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning about a default that will change
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # our own line says it, in one line
}
# Makes every address of a new Ray 127.0.0.1; Ray reads it when it is imported.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# How long the processes of a new Ray wait for each other: 5 to 60 seconds by default, which a busy machine
# exceeds. The 30 s for the raylet's registration are fixed in Ray: a second attempt makes up for it.
_WAITS = {
    "RAY_gcs_server_port_wait_time_s": 120,
    "RAY_gcs_rpc_server_connect_timeout_s": 60,
    "RAY_raylet_start_wait_time_s": 120,
    "RAY_worker_register_timeout_seconds": 240,
    "RAY_agent_register_timeout_ms": 240_000,  # a raylet whose agent answers later than this ends itself
}
_TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def names_cluster() -> bool:
    """Return whether the environment names a cluster to join; imports no Ray."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


def prepare_ray() -> bool:
    """Set what Ray reads when it is imported, and say whether the run starts a Ray of its own.

    It does unless RAY_ADDRESS names a cluster or this process has joined one. Settings of the user win.
    """
    alone = not names_cluster()
    settings = dict(_QUIET)
    if alone:
        settings |= _LOOPBACK | {name: str(wait) for name, wait in _WAITS.items()} | _own_token()
    else:
        settings["RAY_BACKEND_LOG_LEVEL"] = "error"  # of this process: our own line says why it cannot join
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray

    return alone and not ray.is_initialized()


def _own_token() -> dict[str, str]:
    """Return a token for a new Ray where it could not save one: it would in the home folder, or fail."""
    if any(name in os.environ for name in _TOKEN) or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return {}
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) or (folder / "auth_token").exists():
            return {}
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        pass
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextlib.contextmanager
def ray_session(
    config: Config,
    machine: Machine | None,
    *,
    dashboard: bool = False,
    log: Log = lambda text: None,
) -> Iterator[Mapping[str, float]]:
    """Start a Ray of `machine`'s size, or join a cluster (None); yield the resources it has now.

    A Ray that was joined before stays joined, one that is joined here is left at the end. `dashboard`: a Ray
    that is started here gets one, on the loopback interface. `log` hears of a second attempt.

    Raises:
        RunError: Ray does not start here in two attempts, or the cluster does not answer or let us in.
    """
    settings = {
        # report() waits for the controller's next poll, 2 s by default; each takes time from the workers
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1"),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.launch.worker_start_timeout_s),
        # Ray's own barriers, of report() and of resuming, wait for ever by default
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(config.launch.collective_timeout_s),
    }
    if machine is not None:  # nobody takes this machine away: no watcher process
        settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        # Ray's 15 lets every other process interrupt a worker's threads, which then wait for each other.
        settings[_NICENESS] = os.environ.get(_NICENESS, "0")
    import ray

    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(settings))
        if not ray.is_initialized():
            folder = stack.enter_context(_ray_folder()) if machine is not None else None
            stack.callback(ray.shutdown)
            if machine is None:
                _join(log)
            else:
                url = _start(machine, dashboard, folder, log)
                stack.enter_context(_environment({API_ADDRESS: f"http://{url or _NOWHERE}"}))
        yield ray.cluster_resources()


@contextlib.contextmanager
def _ray_folder() -> Iterator[Path | None]:
    """Yield the folder for files of a Ray that is started here, None where RAY_TMPDIR names one, which stays.

    Ray itself would make one that everybody may write to, and leave it.
    """
    if "RAY_TMPDIR" in os.environ:
        yield None
        return
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > _LONGEST_PARENT:
        parent = Path("/tmp")
    remove_stale_folders(parent)
    with temporary_folder(parent=parent) as folder:
        yield folder


def _start(machine: Machine, dashboard: bool, folder: Path | None, log: Log) -> str | None:
    """Start Ray; return host and port of its dashboard. folder: for its files, None for Ray's own."""
    import ray

    def again(state: RetryCallState) -> None:
        assert state.outcome is not None
        log(f"Ray did not start ({first_line(state.outcome.exception())}); trying once more")
        for name, wait in _WAITS.items():
            os.environ[name] = str(max(wait, _wait(name)))

    def start() -> str | None:
        return ray.init(
            "local",
            num_cpus=machine.cores,
            num_gpus=machine.gpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            _temp_dir=folder and str(folder),
            log_to_driver=False,
            logging_level=logging.ERROR,
        ).dashboard_url

    retrying = Retrying(
        retry=retry_if_exception(_may_pass), stop=stop_after_attempt(2), before_sleep=again, reraise=True
    )
    given = {name: os.environ[name] for name, wait in _WAITS.items() if _wait(name) < wait}
    try:
        return retrying(start)
    except Exception as error:
        raise RunError(
            f"Ray does not start here ({first_line(error)}); {_start_remedy(error, given)}"
        ) from None


def _may_pass(error: BaseException) -> bool:
    """Return whether another attempt may succeed: Ray raises bare exceptions where it has waited too long."""
    return isinstance(error, TimeoutError | ConnectionError) or (
        isinstance(error, Exception) and not isinstance(error, OSError | ValueError)
    )


def _start_remedy(error: Exception, short: Mapping[str, str]) -> str:
    if isinstance(error, OSError) and not _may_pass(error):
        shorter = "shorter " if "path length" in str(error) else ""
        return f"set RAY_TMPDIR to a folder with a {shorter}path that can be written to and has room"
    if short:
        return "raise or unset " + " and ".join(f"{name}={value}" for name, value in short.items())
    return "start the same command again when fewer programs run on this machine"


def _wait(name: str) -> float:
    try:
        return float(os.environ[name])
    except (KeyError, ValueError):
        return 0.0


def _join(log: Log) -> None:
    """Join the cluster that RAY_ADDRESS names."""
    import ray
    from ray.exceptions import RayError

    address = os.environ["RAY_ADDRESS"]
    try:
        with announced(log, f"joining the Ray cluster at {address}"):
            _probe(address)
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        if "InvalidAuthToken" in _whole_story(error) or type(error).__name__ == "AuthenticationError":
            raise RunError(f"RAY_ADDRESS={address!r}: {_token_refused()}") from None
        raise RunError(
            f"RAY_ADDRESS={address!r}: no Ray cluster answers there ({first_line(error)}); "
            "start one with `ray start --head`, or unset RAY_ADDRESS to run on this machine alone"
        ) from None


def _token_refused() -> str:
    """Return why a cluster that asks for a token does not let this process in, and what to set."""
    copy = "copy ~/.ray/auth_token of the head node to this machine"
    if (mode := os.environ.get("RAY_AUTH_MODE", "")).lower() != "token":
        now = f"RAY_AUTH_MODE={mode!r}" if mode else "RAY_AUTH_MODE is not set"
        return (
            f"this cluster asks for a token, and {now}; set RAY_AUTH_MODE=token, on another machine than the "
            f"head {copy} first"
        )
    used = next((name for name in _TOKEN if name in os.environ), None)
    where = f"of {used}" if used else "in ~/.ray/auth_token"
    unset = " and unset RAY_AUTH_TOKEN" if used == _TOKEN[0] else ""
    return (
        f"this cluster asks for a token, and the one {where} is missing or wrong; {copy}, and set "
        f"RAY_AUTH_TOKEN_PATH to it{unset}"
    )


def _whole_story(error: BaseException | None) -> str:
    """Return the messages of `error` and of what led to it."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def _probe(address: str) -> None:
    """Connect to HOST:PORT, because Ray waits minutes where nobody listens; other addresses are Ray's matter.

    Raises:
        OSError: nobody listens there.
    """
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
