"""The hosts themselves: they reach each other, a pulled cable cuts them off, and nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hosts import Lab, unavailable

from limits import PATIENCE_S

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
ASK = "python -c \"import urllib.request as u; print(u.urlopen('http://two:8000', timeout=2).status)\""


def alive(pids: list[int]) -> list[int]:
    """Those of `pids`, first processes of hosts, that still run."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def end(pids: list[int]) -> bool:
    """Whether all of `pids` end within a moment: the kernel takes hosts down after their holders."""
    deadline = time.monotonic() + PATIENCE_S
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pids)


def test_hosts_have_their_own_network_and_files_and_a_cable_can_be_pulled(tmp_path: Path) -> None:
    with Lab(["one", "two"], keep=[tmp_path], env={"GREETING": "hello"}) as lab:
        one, two = lab.hosts
        with (tmp_path / "server.log").open("w") as log:
            two.start("exec python -m http.server 8000", log)
        one.run(f"until {ASK}; do sleep 0.2; done")
        two.cable(plugged=False)
        with pytest.raises(RuntimeError, match=r"one: .* ended with 1"):
            one.run(ASK)
        two.cable(plugged=True)
        assert "200" in one.run(f"until {ASK}; do sleep 0.2; done").split()
        assert one.run("hostname; echo $GREETING $MORE", env={"MORE": "world"}).split() == [
            "one",
            "hello",
            "world",
        ]
        one.run(f"echo mine > /tmp/private; echo ours > {tmp_path}/shared")
        assert two.run(f"ls /tmp/private; cat {tmp_path}/shared", check=False).splitlines()[-1] == "ours"
        assert not Path("/tmp/private").exists()
        assert "http.server" not in one.run("ps -e -o args")
        assert alive([one.pid, two.pid]) == [one.pid, two.pid]
    assert (tmp_path / "shared").read_text() == "ours\n"
    assert end([one.pid, two.pid])


def test_nothing_is_left_when_the_maker_is_killed() -> None:
    script = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from hosts import Lab
        with Lab(["one", "two"]) as lab:
            print(*[host.pid for host in lab.hosts], flush=True)
            time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        pids = [int(word) for word in maker.stdout.readline().split()]
        assert alive(pids) == pids != []
        os.kill(maker.pid, signal.SIGKILL)
    assert end(pids)
