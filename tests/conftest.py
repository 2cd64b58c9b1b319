"""Shared fixtures: the repository root, and the folder with original data files (optional)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Small shapes on two threads spend their time waiting for each other, most of all on a busy machine.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Runs of seconds have many checkpoints, each of which waits for a poll; and on a busy machine Ray's own
# processes must come first.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_worker_niceness", "15")

# Without a GPU, Triton runs kernels in its interpreter, if this is set before it is imported.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Under nohup or in the background pytest ignores these signals, and processes inherit that. They do not
# inherit a handler: those that tests start, and send signals to, behave as from a terminal.
for _number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda number, frame: None)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _environment_stays() -> Iterator[None]:
    """Ray sets variables when it starts in this process; tests of other modules start their own processes."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[tuple[str, bool]]]:
    """Begin to note what is flushed to disk: its name, and whether the path that is given was there then."""

    def begin(path: Path) -> list[tuple[str, bool]]:
        seen: list[tuple[str, bool]] = []

        def note(descriptor: int) -> None:
            seen.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), path.exists()))

        monkeypatch.setattr(os, "fsync", note)
        return seen

    return begin


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def operators_built(request: pytest.FixtureRequest) -> None:
    """DeepSpeed's operator is built before any test that needs it, so that no time limit includes that."""
    if any(item.get_closest_marker(name) for item in request.session.items for name in ("zero", "multihost")):
        from capsdist.train.engine.build import zero_requirements
        from capsdist.train.engine.operators import build_operators

        if zero_requirements() is None:
            build_operators()


@pytest.fixture(scope="session")
def original_data() -> Path:
    """The folder named by CAPSDIST_DATA, with the original files of the data sets; skips without it."""
    folder = os.environ.get("CAPSDIST_DATA")
    if not folder:
        pytest.skip("CAPSDIST_DATA is not set: it names a folder with the original MNIST and CIFAR-10 files")
    return Path(folder)
