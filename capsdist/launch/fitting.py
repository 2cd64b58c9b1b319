"""A call of Ray Train or Ray Tune in a thread of its own.

In the main thread `fit` would install its own SIGINT handler and abort the workers at once; here the
main thread shows rows, and decides what a signal means.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["FitThread"]

T = TypeVar("T")


class FitThread(threading.Thread, Generic[T]):
    """A daemon, so that what was stopped does not wait for Ray."""

    def __init__(self, fit: Callable[[], T]) -> None:
        super().__init__(name="capsdist-fit", daemon=True)
        self._fit = fit
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Call `fit` and keep what comes of it."""
        try:
            self._results.append(self._fit())
        except BaseException as error:
            self._error = error

    def result(self) -> T:
        """Return what `fit` returned, or raise what it raised, once the thread has ended."""
        if self._error is not None:
            raise self._error
        return self._results[0]
