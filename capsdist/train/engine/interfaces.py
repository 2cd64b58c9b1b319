"""Choose the network interface of gloo and NCCL, so that they listen on one address.

Both libraries open listening sockets without authentication, with one rank as well. They choose the address
by environment variables, each time a process group is made.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import psutil

from capsdist.errors import RunError

__all__ = ["GLOO", "LOOPBACK", "NCCL", "interface_of", "interface_settings", "on_loopback"]

LOOPBACK = "127.0.0.1"
GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def interface_of(address: str) -> str:
    """Return the name of this machine's network interface that has the IP `address`.

    Raises:
        RunError: none has it.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if address in {entry.address.partition("%")[0] for entry in addresses}:
            return name
    raise RunError(
        f"{socket.gethostname()}: no network interface has the address {address}, by which Ray knows this "
        f"node; start Ray there with --node-ip-address, or set {GLOO} and {NCCL} to an interface"
    )


def interface_settings(address: str) -> dict[str, str]:
    """Return the environment variables that make gloo and NCCL listen on `address`; those of the user win.

    Raises:
        RunError: as `interface_of`.
    """
    if {GLOO, NCCL} <= os.environ.keys():
        return {}
    name = interface_of(address)
    values = {GLOO: name, NCCL: f"={name}"}  # "=": NCCL takes "eth1" for eth10 as well
    return {variable: value for variable, value in values.items() if variable not in os.environ}


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Have process groups that are made in this context listen on the loopback interface only."""
    values = interface_settings(LOOPBACK)
    os.environ.update(values)
    try:
        yield
    finally:
        for variable in values:
            os.environ.pop(variable, None)
