"""Policy: who reaches the cluster. Token on head and workers, private ports, no privileged pods."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from capsdist.clusters.shell import commands, options
from capsdist.clusters.walk import entries, mapping, nodes
from capsdist.errors import Problem

__all__ = ["launcher_problems", "object_problems"]

_MAKE_TOKEN = (
    "make one: mkdir -p ~/.ray && install -m 600 /dev/null {path} && "
    "python -c 'import secrets; print(secrets.token_hex(32))' > {path}"
)
_DEFAULTS = {  # Ray's, for the clouds
    "setup_commands": "installs a nightly wheel",
    "head_start_ray_commands": "opens the dashboard on 0.0.0.0",
}
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "fc00::/7")
_OUTSIDE = "opens the dashboard, client and GCS outside the Kubernetes cluster"
_POD_RULES = {
    _OUTSIDE: ("enableIngress", "externalIPs"),
    "opens Ray's ports on the machine's network": ("hostNetwork", "hostPort"),
    "gives the pod rights over the machine": (
        "hostPID", "hostIPC", "hostPath", "privileged", "allowPrivilegeEscalation", "capabilities.add",
    ),
}  # fmt: skip


def launcher_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of a file for `ray up`."""
    provider = mapping(config.get("provider"))
    for name, does in _DEFAULTS.items():
        if provider.get("type") in ("aws", "azure", "gcp") and name not in config:
            yield Problem(name, None, f"is missing, and Ray's default {does}", "set it")
    for field, words in commands(config):
        yield from _command_problems(field, words)
    if provider.get("type") != "external":  # such a provider starts its nodes itself
        yield from _mode_problems(config)
        yield from _token_problems(config)
    for index, permission in enumerate(entries(mapping(provider.get("security_group")).get("IpPermissions"))):
        yield from _permission_problems(f"IpPermissions[{index}]", mapping(permission))


def object_problems(document: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of a Kubernetes object of any kind."""
    for field, name, value in nodes(document):
        for rule, names in _POD_RULES.items():
            if value and any(f".{field}".endswith(f".{key}") for key in names):
                yield Problem(field, value, rule, "remove it")
        opens = name in ("serviceType", "type") and value in ("LoadBalancer", "NodePort")
        if opens or (name, value) == ("kind", "Ingress"):
            yield Problem(field, value, _OUTSIDE, "set ClusterIP, and use kubectl port-forward")
    for field, words in commands(document):
        yield from _command_problems(field, words, of_launcher=False)


def _command_problems(field: str, words: list[str], *, of_launcher: bool = True) -> Iterator[Problem]:
    for word in words:
        _, name, mode = word.rpartition("RAY_AUTH_MODE=")
        if name and mode != "token" and len(word.split()) == 1:
            rule = "takes jobs from anyone who reaches the port"
            yield Problem(field, name + mode, rule, "set RAY_AUTH_MODE=token")
    starts = ("ray", "start") in itertools.pairwise(word.rpartition("/")[2] for word in words)
    for host in options(words, "--dashboard-host") if starts and of_launcher else ():
        if host not in ("127.0.0.1", "::1", "localhost"):
            rule = "opens the dashboard, which runs jobs, on the network"
            fix = "set --dashboard-host=127.0.0.1; `ray dashboard` forwards"
            yield Problem(field, f"--dashboard-host={host}", rule, fix)


def _mode_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield the nodes on which no command sets RAY_AUTH_MODE."""
    names = ("setup_commands", "{}_setup_commands", "{}_start_ray_commands")
    lists = [
        (names[0], role, [config.get(name.format(role)) for name in names]) for role in ("head", "worker")
    ]
    for kind, settings in mapping(config.get("available_node_types")).items():
        if (own := mapping(settings).get("worker_setup_commands")) is not None:  # replaces setup_commands too
            field = f"available_node_types.{kind}.worker_setup_commands"
            lists.append((field, kind, [own, config.get("worker_start_ray_commands")]))
    for field, who, parts in lists:
        if not any("RAY_AUTH_MODE=" in word for _, words in commands(parts) for word in words):
            rule = f"sets RAY_AUTH_MODE nowhere for {who} nodes: Ray asks for a token only if it finds one"
            yield Problem(field, None, rule, "export RAY_AUTH_MODE=token on every node")


def _token_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield whether token and ssh key are missing, or whether others can read them."""
    mounts = mapping(config.get("file_mounts"))
    tokens = [name for name in mounts if str(name).endswith(".ray/auth_token")]
    if not tokens:
        rule = "brings no token to the nodes: Ray's ports would take jobs from anyone who reaches them"
        yield Problem("file_mounts", list(mounts), rule, "mount ~/.ray/auth_token: ~/.ray/auth_token")
    files = {f"file_mounts.{name}": mounts[name] for name in tokens}
    if key := mapping(config.get("auth")).get("ssh_private_key"):
        files["auth.ssh_private_key"] = key
    for field, local in files.items():
        path = Path(str(local)).expanduser()
        if not path.is_file():
            fix = _MAKE_TOKEN if field.endswith("token") else "name the key that opens the machines"
            yield Problem(field, local, "does not exist", fix.format(path=local))
        elif (mode := path.stat().st_mode & 0o777) & 0o077:
            yield Problem(field, local, f"has mode {mode:04o}, others can read it", f"chmod 600 {local}")


def _permission_problems(field: str, permission: dict[str, Any]) -> Iterator[Problem]:
    """Yield the addresses of the internet that reach more than ssh."""
    first, last = permission.get("FromPort"), permission.get("ToPort")
    protocol = str(permission.get("IpProtocol"))
    if protocol.startswith("icmp") or (protocol, first, last) == ("tcp", 22, 22):
        return
    everything = protocol == "-1" or first in (None, -1)
    ports = "all ports" if everything else f"port {first}" if first == last else f"ports {first}-{last}"
    for _, name, cidr in nodes(permission):
        if name in ("CidrIp", "CidrIpv6") and not _is_private(str(cidr)):
            whom = "the whole internet" if str(cidr).endswith("/0") else "addresses of the internet"
            fix = "remove it: `ray dashboard` forwards the port over ssh"
            yield Problem(f"provider.security_group.{field}", cidr, f"opens {ports} to {whom}", fix)


def _is_private(cidr: str) -> bool:
    try:
        network: Any = ip_network(cidr, strict=False)
    except ValueError:
        return False
    return any(network.subnet_of(ip_network(own)) for own in _PRIVATE if (":" in own) == (":" in cidr))
