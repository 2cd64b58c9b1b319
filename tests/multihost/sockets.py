"""The sockets of a host that wait for strangers: which process, at which address.

Command, on the host: python sockets.py, prints them as JSON. `listening(host)` runs it and returns them.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from hosts import Host


class Socket(NamedTuple):
    """A TCP socket that listens, or a UDP socket without a peer; process: what its command line calls it."""

    pid: int
    process: str
    address: str
    port: int

    @property
    def on_loopback(self) -> bool:
        """Whether only this host reaches it."""
        address = ipaddress.ip_address(self.address)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    @property
    def on_all_interfaces(self) -> bool:
        """Whether it is at no certain address."""
        return ipaddress.ip_address(self.address).is_unspecified


def listening(host: Host) -> list[Socket]:
    """Return the sockets of all processes on `host`, those without a process too."""
    return [Socket(*each) for each in json.loads(host.run(f"{sys.executable} {Path(__file__)}"))]


def here() -> list[Socket]:
    """Return the sockets of all processes on this host."""
    found = []
    for each in psutil.net_connections("inet"):
        if each.status == psutil.CONN_LISTEN or (each.status == psutil.CONN_NONE and not each.raddr):
            command = psutil.Process(each.pid).cmdline() if each.pid else ["no process"]
            found.append(Socket(each.pid or 0, _name(command), *each.laddr[:2]))
    return found


def _name(command: list[str]) -> str:
    """Return the program, the script or module that Python runs, or "ray::" and a name of Ray."""
    if command[0].startswith("ray::"):
        return command[0].strip()
    if not Path(command[0]).name.startswith("python"):
        return Path(command[0]).name
    words = [word for word in command[1:] if not word.startswith("-")]
    return Path(words[0]).name


if __name__ == "__main__":
    print(json.dumps(here()))
