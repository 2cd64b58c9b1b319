"""Shared parts of all commands: safe output, exit statuses, Ctrl-C, and progress lines.

Used by the jobs, the packing commands and the displays, and by nothing that computes.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

from capsdist.errors import CapsdistError, ConfigError

__all__ = [
    "DONE", "FAILED", "INVALID", "STOPPED", "Log", "announced", "command_line", "log", "print_error",
    "print_to", "run_program",
]  # fmt: skip

Log = Callable[[str], None]
"""Called with one line about what is going on: progress, a warning."""

DONE, FAILED, INVALID, STOPPED = 0, 1, 2, 130
"""Exit statuses of all commands: see `capsdist.cli`."""
_QUIET_S = 5.0  # a longer silence needs a line


def run_program(main: Callable[[], int]) -> int:
    """Return the exit status of `main`, a whole command.

    Errors of ours are printed, each as one line. Characters that the output's encoding does not have are
    escaped. Ctrl-C ends with one line and status 130; if the reader of the output has gone, as `head` does,
    the status is 1, without a line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except CapsdistError as error:
        return print_error(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def log(text: str) -> None:
    """Print a line on stderr: what a command is doing, or a warning."""
    print(text, file=sys.stderr, flush=True)


def command_line(words: str) -> str:
    """Return `capsdist words` as this machine can run it: the console command is not installed everywhere."""
    return f"{'capsdist' if shutil.which('capsdist') else 'python -m capsdist'} {words}"


def print_error(error: CapsdistError) -> int:
    """Print each line of `error` and return the exit status that it means."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return INVALID if isinstance(error, ConfigError) else FAILED


def print_to(file: TextIO, text: str) -> None:
    """Print `text` as one line and flush; characters that the encoding of `file` does not have are escaped.

    Raises:
        OSError: the reader of `file` has gone.
    """
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


@contextlib.contextmanager
def announced(log: Callable[[str], None], message: str, *, after_s: float = _QUIET_S) -> Iterator[None]:
    """Call `tell(message)`, from another thread, if the context stays open for longer than `after_s` seconds.

    `log` has returned, or will not be called any more, when the context ends.
    """
    timer = threading.Timer(after_s, log, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
