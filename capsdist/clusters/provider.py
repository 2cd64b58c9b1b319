"""The provider section: kind, misspelt keys that Ray ignores, region, zone, project, own machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from capsdist.clusters.values import entries, mapping, near
from capsdist.errors import Problem

__all__ = ["problems", "provider_type"]

_COMMON = {"type", "use_internal_ips", "disable_node_updaters", "disable_launch_config_check"}
_COMMON |= {"foreground_node_launch", "worker_liveness_check", "worker_rpc_drain"}
# What the providers of Ray 2.60 read; the schema lets everything else through, and nothing reads it.
_KEYS = {
    "aws": _COMMON
    | {
        "region",
        "availability_zone",
        "cache_stopped_nodes",
        "security_group",
        "cloudwatch",
        "aws_credentials",
    },
    "gcp": _COMMON | {"region", "availability_zone", "project_id", "gcp_credentials", "cache_stopped_nodes"},
    "local": _COMMON | {"head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
}
_OTHERS = ("azure", "aliyun", "vsphere", "spark", "external", "readonly", "kuberay")
_EXAMPLES = {"region": "us-west-2", "availability_zone": "us-central1-a", "project_id": "my-project-123"}
_REQUIRED = {
    "aws": ("region",),
    "gcp": ("region", "availability_zone", "project_id"),
    "local": ("head_ip", "worker_ips"),
}


def provider_type(config: dict[str, Any]) -> str | None:
    """Return the provider's kind, None if it is missing."""
    return mapping(config.get("provider")).get("type")


def problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of the section `provider`."""
    section, kind = mapping(config.get("provider")), provider_type(config)
    if kind is not None and kind not in _KEYS and kind not in _OTHERS:
        match = near(kind, _KEYS)
        fix = f"did you mean {match!r}?" if match else f"choose one of {', '.join(_KEYS)}"
        yield Problem("provider.type", kind, "is not a provider of Ray", fix)
    if kind not in _KEYS:
        return
    for key in section.keys() - _KEYS[kind]:
        match = near(key, _KEYS[kind])
        fix = f"did you mean {match!r}?" if match else "remove it"
        yield Problem(f"provider.{key}", section[key], f"is nothing that provider {kind} reads", fix)
    if "coordinator_address" not in section:
        for key in _REQUIRED[kind]:
            if not section.get(key):
                fix = f"set it, e.g. {_EXAMPLES[key]}" if key in _EXAMPLES else "list your machines"
                yield Problem(f"provider.{key}", section.get(key), f"is needed by provider {kind}", fix)
    yield from _zone_problems(section)
    yield from _machine_problems(config, section)


def _zone_problems(section: dict[str, Any]) -> Iterator[Problem]:
    region, zones = section.get("region"), section.get("availability_zone")
    for zone in str(zones or "").split(","):
        if zone.strip() and region and not zone.strip().startswith(str(region)):
            yield Problem(
                "provider.availability_zone",
                zones,
                f"{zone.strip()} is not in provider.region={region!r}",
                "name zones of that region",
            )


def _machine_problems(config: dict[str, Any], section: dict[str, Any]) -> Iterator[Problem]:
    machines = [section.get("head_ip"), *entries(section.get("worker_ips"))]
    twice = [address for address, number in Counter(machines).items() if address and number > 1]
    for address in twice:
        yield Problem(
            "provider.worker_ips", address, "is listed twice, or is the head", "list a machine once"
        )
    workers, most = len(machines) - 1, config.get("max_workers")
    if section.get("type") == "local" and isinstance(most, int) and workers and most != workers:
        word = "leaves machines out" if most < workers else "exceeds the machines"
        fix = f"set max_workers: {workers}"
        yield Problem("max_workers", most, f"{word} of provider.worker_ips, which lists {workers}", fix)
