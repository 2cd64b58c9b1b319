"""AWS: node_config against botocore's model of RunInstances, instance profiles, security group."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from capsdist.clusters.nodes import node_types
from capsdist.clusters.provider import provider_type
from capsdist.clusters.values import entries, mapping, near
from capsdist.errors import Problem

__all__ = ["problems"]

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,), "boolean": (bool,), "integer": (int,), "long": (int,), "float": (int, float),
    "double": (int, float), "structure": (dict,), "list": (list,),
}  # fmt: skip
_RAYS_OWN = {"SubnetIds"}  # Ray chooses one of them for RunInstances' SubnetId
_SSH = 22
_WORLD = {"0.0.0.0/0", "::/0"}


def problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of a file for AWS; none for others."""
    if provider_type(config) != "aws":
        return
    yield from _node_config_problems(config)
    yield from _region_problems(config)
    yield from _profile_problems(config)
    group = mapping(mapping(config.get("provider")).get("security_group"))
    for index, permission in enumerate(entries(group.get("IpPermissions"))):
        field = f"provider.security_group.IpPermissions[{index}]"
        yield from _permission_problems(field, mapping(permission))


def _node_config_problems(config: dict[str, Any]) -> Iterator[Problem]:
    shape = _run_instances()
    for name, kind in node_types(config).items():
        field, node = f"available_node_types.{name}.node_config", mapping(kind.get("node_config"))
        for key in ("InstanceType", "ImageId"):
            if not node.get(key) and "LaunchTemplate" not in node:
                rule = (
                    "is missing: Ray's default image is an Ubuntu 18.04" if key == "ImageId" else "is missing"
                )
                yield Problem(f"{field}.{key}", None, rule, "set it")
        if shape is not None:
            own = {key: value for key, value in node.items() if key not in _RAYS_OWN}
            yield from _shape_problems(field, own, shape)


@functools.cache
def _run_instances() -> Any:
    """Return botocore's model of RunInstances' parameters, None without botocore."""
    try:
        import botocore.session
    except ImportError:
        return None
    service = botocore.session.get_session().get_service_model("ec2")
    return service.operation_model("RunInstances").input_shape


def _shape_problems(field: str, value: Any, shape: Any) -> Iterator[Problem]:
    """Yield where `value` breaks a botocore shape: unknown keys, wrong kinds, unknown constants."""
    if not _is_kind(value, shape.type_name):
        yield Problem(field, value, f"must be of type {shape.type_name}", "see EC2 RunInstances")
        return
    match shape.type_name:
        case "structure":
            yield from _member_problems(field, value, shape)
        case "list":
            for index, inner in enumerate(value):
                yield from _shape_problems(f"{field}[{index}]", inner, shape.member)
        case "string" if shape.enum and value not in shape.enum:
            similar = near(value, shape.enum)
            fix = f"did you mean {similar!r}?" if similar else f"e.g. {', '.join(shape.enum[:5])}"
            yield Problem(field, value, f"is no {shape.name} that botocore knows", fix)


def _is_kind(value: object, type_name: str) -> bool:
    if isinstance(value, bool):  # which is an int, too
        return type_name == "boolean"
    return isinstance(value, _KINDS.get(type_name, (object,)))


def _member_problems(field: str, value: dict[str, Any], shape: Any) -> Iterator[Problem]:
    for key, inner in value.items():
        if key in shape.members:
            yield from _shape_problems(f"{field}.{key}", inner, shape.members[key])
        else:
            similar = near(key, shape.members)
            fix = f"did you mean {similar!r}?" if similar else "remove it"
            yield Problem(f"{field}.{key}", inner, "is not a parameter of EC2 RunInstances", fix)


def _region_problems(config: dict[str, Any]) -> Iterator[Problem]:
    region = mapping(config.get("provider")).get("region")
    try:
        import botocore.session
    except ImportError:
        return
    session = botocore.session.get_session()
    known = [
        name
        for part in session.get_available_partitions()
        for name in session.get_available_regions("ec2", part)
    ]
    if region and region not in known:
        match = near(region, known)
        fix = f"did you mean {match!r}?" if match else "see the regions of EC2"
        yield Problem("provider.region", region, "is no region of EC2", fix)


def _profile_problems(config: dict[str, Any]) -> Iterator[Problem]:
    commands = [
        str(command) for key in config for command in entries(config[key]) if key.endswith("commands")
    ]
    if not any("s3://" in command for command in commands):
        return
    for name, kind in node_types(config).items():
        if not mapping(kind.get("node_config")).get("IamInstanceProfile"):
            yield Problem(
                f"available_node_types.{name}.node_config.IamInstanceProfile",
                None,
                "is missing: these nodes have no credentials for S3",
                "set {Name: PROFILE} with a profile that may use the bucket",
            )


def _permission_problems(field: str, permission: dict[str, Any]) -> Iterator[Problem]:
    cidrs = [mapping(entry).get("CidrIp") for entry in entries(permission.get("IpRanges"))]
    cidrs += [mapping(entry).get("CidrIpv6") for entry in entries(permission.get("Ipv6Ranges"))]
    first, last = permission.get("FromPort"), permission.get("ToPort")
    if not _WORLD.isdisjoint(cidrs) and (first, last) != (_SSH, _SSH):
        ports = (
            "all ports"
            if first in (None, -1)
            else f"port {first}"
            if first == last
            else f"ports {first}-{last}"
        )
        rule = f"opens {ports} to the whole internet"
        world = next(cidr for cidr in cidrs if cidr in _WORLD)
        yield Problem(field, world, rule, "remove it: `ray dashboard` forwards the port over ssh")
