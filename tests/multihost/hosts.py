"""Hosts on one machine, out of Linux namespaces: real enough for `ray start`, ssh, and pulling cables.

Every host has its own network behind one switch, its own processes, name, /tmp, /dev/shm, /root and /run; the
rest of the file system is shared. Nothing has a name outside: when the processes that hold the namespaces
die, by leaving the block or by SIGKILL, the kernel removes links, mounts and processes with them.

    with Lab(["head", "one", "two"], keep=[shared]) as lab:
        for host in lab.hosts:
            start_ray(host, lab.hosts[0])
        print(lab.hosts[0].run("ray status"))
        lab.hosts[1].cable(plugged=False)

Make a `Lab` in the main thread: the hosts die with the thread that made them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for cluster/drill, which is no test
from limits import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("unshare", "nsenter", "setpriv", "ip", "mount", "pgrep")
SSH_TOOLS = {"/usr/sbin/sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}

# A dead raylet or host is noticed in 20 s, not in 74, and a slow one is not taken for dead: environment of
# every `ray start`, the head's decides.
FAST_HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "8",
}

# What process 1 of a host does. Arguments: folders that stay visible below the private ones. `mount -n`
# leaves /run/mount alone. Process 1 ignores SIGCHLD, so that a killed raylet leaves no zombie.
_BOOT = r"""
set -e
for private in /tmp /dev/shm /root /run; do
  mount -t tmpfs -o mode=1777 tmpfs /mnt
  for kept; do
    case $kept in
      $private/*) mkdir -p "/mnt/${kept#"$private"/}"; mount --rbind "$kept" "/mnt/${kept#"$private"/}" ;;
    esac
  done
  mount -n --move /mnt $private
done
chmod 700 /root; chmod 755 /run
hostname "$HOST_NAME"; ip link set lo up
echo "$HOSTS_FILE" > /run/hosts; mount --bind /run/hosts /etc/hosts
echo ready
exec env --ignore-signal=CHLD sleep infinity
"""
_SWITCH = "echo ready; exec sleep infinity"
# setpriv: the holder dies with us, even by SIGKILL; --kill-child: process 1, hence all of a host, with it.
_HOLD = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child"]


def unavailable(*, ssh: bool = False) -> str | None:
    """Return in one line why this machine cannot make hosts, None if it can; `ssh`: with sshd on them."""
    if sys.platform != "linux":
        return "hosts are made of Linux namespaces"
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"needs {', '.join(missing)}: apt-get install util-linux iproute2 procps"
    if ssh and (packages := [package for tool, package in SSH_TOOLS.items() if not shutil.which(tool)]):
        return f"needs sshd, ssh and rsync: apt-get install {' '.join(packages)}"
    probe = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc", "ip", "link"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"may not make namespaces (root needed): {done.stderr.strip() or 'unshare failed'}"
    return None


class Host:
    """One host of a lab; commands run as root in its /root, with an environment of their own."""

    def __init__(self, lab: Lab, name: str, ip: str, pid: int, port: str) -> None:
        self.lab, self.name, self.ip, self.pid, self.port = lab, name, ip, pid, port

    def run(
        self,
        command: str,
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = PATIENCE_S,
        check: bool = True,
    ) -> str:
        """Run a shell command and return what it printed, both streams.

        Raises:
            RuntimeError: it ended with another status than 0 (unless `check` is off); the output is in it.
        """
        done = subprocess.run(
            self._enter(command, env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {command!r} ended with {done.returncode}\n{done.stdout}")
        return done.stdout

    def start(
        self, command: str, output: IO[str], *, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a shell command whose both streams go to `output`.

        Killing the returned process leaves the command running: signal it inside, by `run("kill ...")`.
        """
        return subprocess.Popen(
            self._enter(command, env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def cable(self, *, plugged: bool) -> None:
        """Pull or plug the network cable at the switch: no FIN and no reset, packets vanish."""
        self.lab.switch("ip", "link", "set", self.port, "up" if plugged else "down")

    def _enter(self, command: str, env: Mapping[str, str] | None) -> list[str]:
        clean = {
            "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",  # this Python's programs, activated or not
            "HOME": "/root",
            "LANG": "C.UTF-8",
            **self.lab.env,
            **(env or {}),
        }
        settings = [f"{name}={value}" for name, value in clean.items()]
        # --wdns, not --wd: that would open the machine's own /root before entering
        enter = ["nsenter", f"--target={self.pid}", "-m", "-u", "-i", "-n", "-p", "--wdns=/root"]
        return [*enter, "env", "-i", *settings, "bash", "-c", command]


class Lab:
    """Hosts with addresses NET.1, NET.2, ... behind a switch, up while its `with` block runs.

    keep: folders below /tmp or /root that every host sees (a test's folder as shared storage); the checkout
    and the Python environment are always among them. env: environment of every command on every host.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        keep: Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        net: str = "10.77.0",
    ) -> None:
        self.names, self.net, self.env = names, net, dict(env or {})
        self.keep = [sys.base_prefix, sys.prefix, str(ROOT), *map(str, keep)]
        self.hosts: list[Host] = []
        self._holders: list[subprocess.Popen[str]] = []
        self._switch_pid = 0

    def __enter__(self) -> Lab:
        """Bring up switch and hosts."""
        try:
            self._switch_pid = self._hold(["--net"], _SWITCH)
            self.switch("ip", "link", "add", "br0", "up", "type", "bridge")
            for number, name in enumerate(self.names, 1):
                self.hosts.append(self._add(number, name))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all hosts at once, as a power cut would."""
        for holder in reversed(self._holders):
            holder.kill()
        for holder in self._holders:
            holder.wait()

    def switch(self, *command: str) -> None:
        """Run a command in the network of the switch, which sees one port per host."""
        subprocess.run(["nsenter", f"--target={self._switch_pid}", "-n", *command], check=True)

    def _add(self, number: int, name: str) -> Host:
        ip, port = f"{self.net}.{number}", f"port{number}"
        table = [f"{self.net}.{index} {other}" for index, other in enumerate(self.names, 1)]
        options = ["--net", "--pid", "--mount", "--uts", "--ipc", "--mount-proc"]
        hosts_file = "\n".join(["127.0.0.1 localhost", *table])
        pid = self._hold(options, _BOOT, *self.keep, HOST_NAME=name, HOSTS_FILE=hosts_file)
        self.switch("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self.switch("ip", "link", "set", port, "master", "br0", "up")
        host = Host(self, name, ip, pid, port)
        host.run(f"ip addr add {ip}/24 dev eth0 && ip link set eth0 up")
        return host

    def _hold(self, options: list[str], script: str, *arguments: str, **env: str) -> int:
        """Start a process that holds new namespaces; return the pid of the process inside, as seen here."""
        command = [*_HOLD, *options, "sh", "-c", script, "boot", *arguments]
        holder = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env={**os.environ, **env})
        self._holders.append(holder)
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            raise RuntimeError(f"a namespace did not come up: {unavailable() or 'see above'}")
        return int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())


def start_ray(
    host: Host, head: Host, *, cpus: int = 1, dashboard: bool = False, env: Mapping[str, str] | None = None
) -> None:
    """Run `ray start` on `host`, as the head if it is `head`; `cpus`: 0 for a head that trains nothing."""
    role = f"--address={head.ip}:6379"
    if host is head:
        role = f"--head --port=6379 --include-dashboard={str(dashboard).lower()} --dashboard-host=127.0.0.1"
    # Ray would see the whole machine's CPUs and memory, and ask the internet for its address.
    limits = f"--node-ip-address={host.ip} --num-cpus={cpus} --object-store-memory=100000000"
    host.run(f"ray start {role} {limits} --disable-usage-stats", env=env)


def start_ssh(host: Host, public_key: str, profile: str = "") -> None:
    """Run sshd on `host`, which lets root in by `public_key`; `profile`: lines of its .bashrc."""
    key, lines = shlex.quote(public_key.strip()), shlex.quote(profile)
    options = [f"ListenAddress={host.ip}", "HostKey=/run/host_key", "UsePAM=no", "PidFile=none"]
    options += [
        "PermitRootLogin=prohibit-password",
        "PasswordAuthentication=no",
        "KbdInteractiveAuthentication=no",
    ]
    host.run(
        "set -e; mkdir -p /run/sshd; mkdir -p -m 700 .ssh; ssh-keygen -q -t ed25519 -N '' -f /run/host_key; "
        f"echo {key} > .ssh/authorized_keys; echo {lines} > .bashrc; echo '. ~/.bashrc' > .bash_profile; "
        f"/usr/sbin/sshd -f /dev/null -E /run/sshd.log {' '.join(f'-o {option}' for option in options)}"
    )
