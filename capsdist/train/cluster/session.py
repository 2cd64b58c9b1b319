"""Ray around one run: started quietly on this machine, or the cluster that RAY_ADDRESS names.

Ours. A local Ray listens on the loopback interface only, has no dashboard, and ends with the run; a cluster
is joined and left as it is. Settings of Ray Train travel as environment variables, so they are set here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from capsdist.config import Config
from capsdist.errors import RunError
from capsdist.storage.temporary import remove_leftovers, temporary_folder
from capsdist.train.cluster.preflight import Machine

__all__ = ["API_ADDRESS", "names_cluster", "prepare_ray", "ray_session"]

API_ADDRESS = "RAY_API_SERVER_ADDRESS"
"""Names Ray's state API; else it is looked for on the whole machine, in vain if there are two Rays."""

_KNOCK_S = 5.0
_LONGEST_PARENT = 21  # characters: the names of Ray's sockets have 86 more, and 107 at most
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning about a default that will change
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # our own line says it, in one line
}
# Makes every address of a new Ray 127.0.0.1; Ray reads it when it is imported.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def names_cluster() -> bool:
    """Return whether the environment names a cluster to join; imports no Ray."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


def prepare_ray() -> bool:
    """Set what Ray reads when it is imported, and say whether the run starts a Ray of its own.

    It does unless RAY_ADDRESS names a cluster or this process has joined one. Settings of the user win.
    """
    alone = not names_cluster()
    for name, value in (_QUIET | _LOOPBACK if alone else _QUIET).items():
        os.environ.setdefault(name, value)
    import ray

    return alone and not ray.is_initialized()


@contextlib.contextmanager
def ray_session(
    config: Config, machine: Machine | None, *, dashboard: bool = False
) -> Iterator[Mapping[str, float]]:
    """Start a Ray of `machine`'s size, or join a cluster (None); yield the resources it has now.

    A Ray that was joined before stays joined, one that is joined here is left at the end. `dashboard`: a Ray
    that is started here gets one, on the loopback interface.

    Raises:
        RunError: the cluster does not answer.
    """
    settings = {
        # report() waits for the controller's next poll, 2 s by default
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.cluster.worker_start_timeout_s),
        # Ray's own barriers, of report() and of resuming, wait for ever by default
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(config.cluster.collective_timeout_s),
    }
    if machine is not None:  # nobody takes this machine away: no watcher process
        settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    import ray

    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(settings))
        if not ray.is_initialized():
            folder = stack.enter_context(_ray_folder()) if machine is not None else None
            url = _init(machine, dashboard, folder)
            stack.callback(ray.shutdown)
            if machine is not None and url:
                stack.enter_context(_environment({API_ADDRESS: f"http://{url}"}))
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
    remove_leftovers(parent)
    with temporary_folder(parent=parent) as folder:
        yield folder


def _init(machine: Machine | None, dashboard: bool, folder: Path | None) -> str | None:
    """Start or join Ray; return host and port of its dashboard. folder: for its files, None for Ray's own."""
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if machine is not None:
        started = ray.init(
            "local",
            num_cpus=machine.cores,
            num_gpus=machine.gpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            _temp_dir=folder and str(folder),
            **quiet,
        )
        return started.dashboard_url
    address = os.environ["RAY_ADDRESS"]
    try:
        _knock(address)
        return ray.init(**quiet).dashboard_url
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"RAY_ADDRESS={address!r}: no Ray cluster answers there ({reason}); "
            "start one with `ray start --head`, or unset RAY_ADDRESS to run on this machine alone"
        ) from None


def _knock(address: str) -> None:
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
