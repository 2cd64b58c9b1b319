"""Node types: how many of each, what the head does, which of spot and on-demand is asked for first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from capsdist.clusters.values import entries, integer, mapping, near
from capsdist.errors import Problem

__all__ = ["is_spot", "node_types", "problems"]


def node_types(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the node types by name."""
    return {name: mapping(kind) for name, kind in mapping(config.get("available_node_types")).items()}


def is_spot(kind: dict[str, Any]) -> bool:
    """Say whether nodes of this type can be taken away: spot on AWS, spot or preemptible on Google Cloud."""
    node = mapping(kind.get("node_config"))
    if mapping(node.get("InstanceMarketOptions")).get("MarketType") == "spot":
        return True
    scheduling = node.get("scheduling")  # Ray's examples write a list of mappings
    parts = [mapping(part) for part in entries(scheduling) or [scheduling]]
    return any(part.get("provisioningModel") == "SPOT" or part.get("preemptible") for part in parts)


def problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of `available_node_types`, `head_node_type` and `max_workers`."""
    kinds, head, most = (
        node_types(config),
        config.get("head_node_type"),
        integer(config.get("max_workers"), 0),
    )
    if not kinds:
        return  # own machines have no types; a cloud without them fails Ray's validation
    for name, kind in kinds.items():
        yield from _count_problems(name, kind, most)
    least = sum(integer(kind.get("min_workers"), 0) for kind in kinds.values())
    if least > most:
        rule = f"is below the sum of min_workers of all types, {least}"
        yield Problem("max_workers", config.get("max_workers"), rule, f"set max_workers: {least}")
    if head not in kinds:
        match = near(head, kinds)
        fix = f"did you mean {match!r}?" if match else f"choose one of {', '.join(kinds)}"
        yield Problem("head_node_type", head, "is not among available_node_types", fix)
        return
    yield from _head_problems(str(head), kinds[str(head)])
    yield from _priority_problems({name: kind for name, kind in kinds.items() if name != head})


def _count_problems(name: str, kind: dict[str, Any], most: int) -> Iterator[Problem]:
    field = f"available_node_types.{name}"
    least, limit = integer(kind.get("min_workers"), 0), integer(kind.get("max_workers"), most)
    if least < 0 or limit < 0:
        key = "min_workers" if least < 0 else "max_workers"
        yield Problem(f"{field}.{key}", kind[key], "must be at least 0", "set 0 for none")
    elif least > limit:
        rule = f"exceeds max_workers={limit} of this type"
        yield Problem(f"{field}.min_workers", least, rule, f"set at most {limit}")
    if limit > most:
        rule = f"exceeds max_workers={most} of the whole cluster"
        yield Problem(f"{field}.max_workers", limit, rule, f"set at most {most}, or raise max_workers")


def _head_problems(name: str, kind: dict[str, Any]) -> Iterator[Problem]:
    field = f"available_node_types.{name}"
    cpus = mapping(kind.get("resources")).get("CPU")
    if cpus != 0:
        rule = "lets the head train, which then starves what schedules the cluster"
        yield Problem(f"{field}.resources.CPU", cpus, rule, "set resources: {CPU: 0}")
    if integer(kind.get("max_workers"), 0) > 0:
        rule = "lets the head's type be started as a worker too"
        yield Problem(f"{field}.max_workers", kind["max_workers"], rule, "set max_workers: 0")
    if is_spot(kind):
        rule = "is taken away at any time, and the cluster and its jobs with it"
        yield Problem(f"{field}.node_config", "spot", rule, "make the head on-demand")


def _priority_problems(workers: dict[str, dict[str, Any]]) -> Iterator[Problem]:
    spot = {name: integer(kind.get("priority"), 0) for name, kind in workers.items() if is_spot(kind)}
    for name, kind in workers.items():
        priority = integer(kind.get("priority"), 0)
        if not is_spot(kind) and spot and priority >= max(spot.values()):
            best = max(spot, key=lambda other: spot[other])
            rule = f"on-demand nodes are asked for before {best}, whose priority is {spot[best]}"
            yield Problem(
                f"available_node_types.{name}.priority", priority, rule, "lower it, or raise the other"
            )
