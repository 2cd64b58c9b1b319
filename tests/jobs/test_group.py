"""Where the process group of workers listens; the sockets of real runs are in tests/multihost."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from capsdist.errors import RunError
from capsdist.train.engine.interfaces import (
    GLOO,
    LOOPBACK,
    NCCL,
    interface_of,
    interface_settings,
    on_loopback,
)

JOIN = """
import psutil
from capsdist.launch.group import join_group, listen
port, descriptor = listen("127.0.0.1")
join_group(backend="gloo", world_rank=0, world_size=1, address="127.0.0.1", store=("127.0.0.1", port),
           descriptor=descriptor, timeout_s=60)
found = [each.laddr for each in psutil.Process().net_connections("tcp") if each.status == "LISTEN"]
print(*{address.ip for address in found}, port in {address.port for address in found}, len(found))
"""


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (GLOO, NCCL):
        monkeypatch.delenv(name, raising=False)


def test_store_and_gloo_listen_on_the_address_they_are_given() -> None:
    done = subprocess.run([sys.executable, "-c", JOIN], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["127.0.0.1", "True", "2"]


def test_the_interface_of_an_address() -> None:
    addresses = psutil.net_if_addrs()
    assert LOOPBACK in {each.address for each in addresses[interface_of(LOOPBACK)]}
    with pytest.raises(
        RunError, match=r": no network interface has the address 192\.0\.2\.250, by which Ray"
    ):
        interface_of("192.0.2.250")


def test_the_settings_of_the_user_win(monkeypatch: pytest.MonkeyPatch) -> None:
    name = interface_of(LOOPBACK)
    assert interface_settings(LOOPBACK) == {GLOO: name, NCCL: f"={name}"}
    monkeypatch.setenv(GLOO, "eth7")
    assert interface_settings(LOOPBACK) == {NCCL: f"={name}"}
    monkeypatch.setenv(NCCL, "eth7")
    assert interface_settings("192.0.2.250") == {}


def test_on_loopback_leaves_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    with on_loopback():
        assert os.environ[GLOO] == interface_of(LOOPBACK)
    assert dict(os.environ) == before
