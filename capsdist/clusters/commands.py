"""Set-up and start commands: pinned packages, private ports, token, file limit, none left to defaults."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from capsdist.clusters.pins import image_problems, pin_problems
from capsdist.clusters.provider import provider_type
from capsdist.clusters.shell import option, simple_commands
from capsdist.clusters.values import entries, mapping, ray_version
from capsdist.errors import Problem

__all__ = ["problems"]

_LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
_MUST_SET = {
    "setup_commands": "installs a nightly wheel",
    "head_setup_commands": "installs packages without pins",
    "head_start_ray_commands": "opens the dashboard on 0.0.0.0",
    "worker_start_ray_commands": "starts Ray outside the project",
}


def problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of all commands and of the container image, if there is one."""
    if provider_type(config) in ("aws", "gcp"):
        for name, reason in _MUST_SET.items():
            if name not in config:
                yield Problem(name, None, f"is missing, and Ray's default {reason}", "set it")
    for field, command in _commands(config):
        yield from pin_problems(field, command)
        for words in simple_commands(command):
            if words[:2] == ["ray", "start"]:
                yield from _start_problems(field, words)
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        yield from _file_limit_problems(name, config)
    yield from _token_problems(config)
    docker = mapping(config.get("docker"))
    for key in ("image", "head_image", "worker_image"):
        if docker.get(key):
            version = ray_version() if "rayproject/" in str(docker[key]) else None
            yield from image_problems(f"docker.{key}", str(docker[key]), version)


def _commands(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _LISTS:
        for index, command in enumerate(entries(config.get(name))):
            yield f"{name}[{index}]", str(command)
    for kind, settings in mapping(config.get("available_node_types")).items():
        for index, command in enumerate(entries(mapping(settings).get("worker_setup_commands"))):
            yield f"available_node_types.{kind}.worker_setup_commands[{index}]", str(command)


def _start_problems(field: str, words: list[str]) -> Iterator[Problem]:
    host = option(words, "--dashboard-host")
    if host is not None and not _is_loopback(host):
        rule = "opens the dashboard, which runs jobs, on the network"
        yield Problem(
            field,
            f"--dashboard-host={host}",
            rule,
            "set --dashboard-host=127.0.0.1; `ray dashboard` forwards",
        )
    if "--head" in words and option(words, "--autoscaling-config") is None:
        yield Problem(
            field,
            "ray start --head",
            "has no --autoscaling-config: no worker would ever start",
            "add --autoscaling-config=~/ray_bootstrap_config.yaml",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _file_limit_problems(name: str, config: dict[str, Any]) -> Iterator[Problem]:
    for index, command in enumerate(entries(config.get(name))):
        commands = list(simple_commands(str(command)))
        if any(words[:2] == ["ray", "start"] for words in commands) and not any(
            words[:2] == ["ulimit", "-n"] for words in commands
        ):
            rule = "starts Ray with the system's file limit, often 1024: connections of a cluster exceed it"
            yield Problem(f"{name}[{index}]", "ray start", rule, "put `ulimit -n 65536;` before it")


def _token_problems(config: dict[str, Any]) -> Iterator[Problem]:
    modes = [
        (field, word)
        for field, command in _commands(config)
        for words in simple_commands(command)
        for word in words
        if word.startswith("RAY_AUTH_MODE=")
    ]
    for field, word in modes:
        if word != "RAY_AUTH_MODE=token":
            yield Problem(
                field, word, "takes jobs from anyone who reaches the port", "set RAY_AUTH_MODE=token"
            )
    if not modes and provider_type(config) != "external":
        rule = "sets RAY_AUTH_MODE nowhere: whether Ray asks for the token depends on what it finds"
        yield Problem("setup_commands", None, rule, "export RAY_AUTH_MODE=token on every node")
