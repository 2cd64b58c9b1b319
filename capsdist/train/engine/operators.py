"""DeepSpeed's import on this machine, and the operator that it compiles for communication between CPU ranks.

PyTorch's extension loader guards a build by a file named `lock`, which stays if the build is killed; every
later start then waits for it without limit. Here the operator is built and loaded under a lock (`flock`) of
our own, which ends with its process. If PyTorch's `lock` is found while holding ours, it is left from a
killed build and is removed, unless a process of this machine has it open or works in the build folder: a
program other than capsdist that builds now, or compilers that a kill has left, are waited for. A build by
another program on another machine that shares the folder cannot be seen.

`TORCH_EXTENSIONS_DIR` moves the build folder. The operator is compiled without ``-march=native``, so machines
of one operating system may share it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from capsdist.console import Log
from capsdist.errors import RunError
from capsdist.storage.durable import open_lock_file, open_regular, remove_file, write_durably
from capsdist.storage.settings import positive_from_environment

__all__ = ["Sign", "build_operators", "import_deepspeed", "load_operators", "prepare_operators"]


Sign = Callable[[], None]
"""Called often while something takes long, by the process that waits for its end or its deadline."""

NAME = "deepspeed_shm_comm"
_LOCK, _TORCHS_LOCK, _STAMP, _LOG = "capsdist.lock", "lock", "capsdist.built", "build.log"
_DEADLINE = "CAPSDIST_BUILD_DEADLINE_S"
_DEADLINE_S = 1800.0
_POLL_S = 0.2
# Imports no capsdist: a worker may have found it by a path that a new process does not know.
_BUILD = (
    "from deepspeed.accelerator import get_accelerator\n"
    "get_accelerator().create_op_builder('ShareMemCommBuilder').load()\n"
)


def _silent(text: str) -> None:
    """Say nothing."""


def _no_sign() -> None:
    """Give no sign."""


def prepare_operators(log: Log = _silent, sign: Sign = _no_sign) -> None:
    """Have every rank load the operator, and wait for all: collective, without a collective's time limit.

    Raises:
        RunError: as `load_operators`.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        load_operators(log, sign)
        return
    # A group of its own, whose limit is longer: that of the ordinary group is meant for ranks that compute.
    group: Any = dist.new_group(timeout=timedelta(seconds=_deadline_s() + 60.0), backend="gloo")
    load_operators(log, sign)
    dist.barrier(group)
    dist.destroy_process_group(group)


def load_operators(log: Log = _silent, sign: Sign = _no_sign) -> None:
    """Load DeepSpeed's CPU operator into this process, where DeepSpeed finds it; build it before if need be.

    Raises:
        RunError: it cannot be built, or not within CAPSDIST_BUILD_DEADLINE_S (default 1,800 s).
    """
    if sys.platform != "linux":  # DeepSpeed does without it
        return
    import_deepspeed(torch.device("cpu"))
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    builder = accelerator.create_op_builder("ShareMemCommBuilder")
    if builder.name not in builder._loaded_ops:
        with _built(log, sign), contextlib.redirect_stdout(io.StringIO()):
            builder.load()


def build_operators(log: Log = _silent) -> None:
    """Build DeepSpeed's CPU operator, unless it is there; this process imports no DeepSpeed.

    Raises:
        RunError: as `load_operators`.
    """
    if sys.platform == "linux":
        with _built(log, _no_sign):
            pass


def import_deepspeed(device: torch.device) -> Any:
    """Return the module `deepspeed`, imported silently.

    DeepSpeed chooses its device when it is first imported, by environment variables, and its compiler looks
    for ninja on the PATH, where that of an environment that is not activated is missing.
    """
    os.environ.update(_environment(device))
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed
    return deepspeed


def _environment(device: torch.device) -> dict[str, str]:
    """Return the variables that DeepSpeed reads."""
    values = {"LOCAL_RANK": os.environ.get("LOCAL_RANK", str(device.index or 0))}
    if device.type == "cpu":
        values["DS_ACCELERATOR"] = "cpu"
    path, scripts = os.environ.get("PATH", ""), sysconfig.get_path("scripts")
    if scripts not in path.split(os.pathsep):
        values["PATH"] = os.pathsep.join([scripts, path])
    return values


@contextlib.contextmanager
def _built(log: Log, sign: Sign) -> Iterator[None]:
    """Hold the lock of the build folder, with the operator in it, while the context is open."""
    until = time.monotonic() + _deadline_s()
    with _one_line_errors():
        folder = _build_folder()
    with _one_line_errors(str(folder)):
        descriptor = open_lock_file(folder / _LOCK)
        try:
            what = f"another process builds it in {folder}"
            _wait(lambda: not _take(descriptor), until, log, sign, what)
            _remove_stale_lock(folder, until, log, sign)
            if not _is_built(folder):
                log(f"building DeepSpeed's CPU operator on {socket.gethostname()}, about a minute")
                _build(folder, until, sign)
            yield
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _one_line_errors(folder: str = "") -> Iterator[None]:
    """Make of what the file system refuses, be it a lock, an error of ours with the remedy."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{error.filename or folder}: DeepSpeed's CPU operator cannot be built there "
            f"({error.strerror or error}); set TORCH_EXTENSIONS_DIR to a writable folder of a local disk, or "
            "use --train.engine ddp"
        ) from None


def _build_folder() -> Path:
    """Return the folder in which PyTorch's loader builds the operator; it exists."""
    from torch.utils import cpp_extension

    return Path(os.path.realpath(cpp_extension._get_build_directory(NAME, False)))


def _take(descriptor: int) -> bool:
    """Try to take the lock."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_stale_lock(folder: Path, until: float, log: Log, sign: Sign) -> None:
    """Remove the file that tells PyTorch's loader of a build, once no process of this machine builds."""
    path = folder / _TORCHS_LOCK
    if not path.exists():
        return
    _wait(lambda: _builders(folder), until, log, sign, f"another program builds it in {folder}")
    try:
        remove_file(path)
    except OSError as error:
        raise RunError(
            f"{path}: was left by a build that was killed, and cannot be removed ({error.strerror}); remove "
            "it, or set TORCH_EXTENSIONS_DIR to a folder of your own"
        ) from None


def _builders(folder: Path) -> list[int]:
    """Return the processes of this machine that have PyTorch's lock file open or work in `folder`."""
    wanted = {str(folder), str(folder / _TORCHS_LOCK)}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            links = [process / "cwd", *(process / "fd").iterdir()]
            if any(_target(link) in wanted for link in links):
                found.append(int(process.name))
    return found


def _target(link: Path) -> str | None:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile
        return None


def _is_built(folder: Path) -> bool:
    """Return whether the operator in `folder` was built whole, by this PyTorch and this DeepSpeed."""
    try:
        return (folder / f"{NAME}.so").exists() and (folder / _STAMP).read_bytes() == _stamp()
    except OSError:
        return False


def _stamp() -> bytes:
    """Return what an operator is built from and by."""
    origins = [spec.origin for name in ("torch", "deepspeed") if (spec := importlib.util.find_spec(name))]
    versions = [torch.__version__, importlib.metadata.version("deepspeed"), sys.version]
    return os.fsencode("\n".join(map(str, [*origins, *versions, os.environ.get("CXX", "c++")])))


def _build(folder: Path, until: float, sign: Sign) -> None:
    """Have another process build the operator; it and its compilers are killed at the deadline."""
    remove_file(folder / _STAMP)
    with open(folder / _LOG, "wb", opener=open_regular) as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BUILD],
            env=os.environ | _environment(torch.device("cpu")),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _poll(lambda: process.poll() is None, until, sign, f"the build in {folder}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                remove_file(folder / _TORCHS_LOCK)
    if process.returncode != 0:
        raise RunError(
            f"DeepSpeed's CPU operator could not be built; the compiler's messages are in {folder / _LOG}, "
            "or use --train.engine ddp"
        )
    write_durably(folder / _STAMP, _stamp())


def _wait(busy: Callable[[], object], until: float, log: Log, sign: Sign, what: str) -> None:
    """Wait while `busy()`, and say why if it takes longer than a moment."""
    if busy():
        log(f"waiting for DeepSpeed's CPU operator on {socket.gethostname()}: {what}")
        _poll(busy, until, sign, what)


def _poll(busy: Callable[[], object], until: float, sign: Sign, what: str) -> None:
    """Wait while `busy()`, and give signs.

    Raises:
        RunError: it still is at the time `until`.
    """
    retrying = Retrying(
        retry=retry_if_result(bool),
        wait=wait_fixed(_POLL_S),
        stop=stop_after_delay(max(until - time.monotonic(), 0.0)),
        before_sleep=lambda _: sign(),
    )
    try:
        retrying(busy)
    except RetryError:
        raise _late(what) from None


def _late(what: str) -> RunError:
    return RunError(
        f"{_DEADLINE}={_deadline_s():g}: DeepSpeed's CPU operator was not ready within that time: {what}; "
        "raise it, or use --train.engine ddp"
    )


def _deadline_s() -> float:
    return positive_from_environment(_DEADLINE, _DEADLINE_S)
