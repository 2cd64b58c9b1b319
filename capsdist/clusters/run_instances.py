"""AWS: `node_config` and `IpPermissions` against botocore's parameter validation of the EC2 calls."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from capsdist.clusters.walk import mapping, near, nodes
from capsdist.errors import Problem

__all__ = ["problems"]


def problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of a file for AWS; none for others."""
    provider = mapping(config.get("provider"))
    if provider.get("type") != "aws":
        return
    for name, kind in mapping(config.get("available_node_types")).items():
        node = dict(mapping(mapping(kind).get("node_config")))
        node.pop("SubnetIds", None)  # Ray chooses one of them for SubnetId
        parameters = {"MinCount": 1, "MaxCount": 1} | node  # as Ray sets them
        yield from _call_problems(f"available_node_types.{name}.node_config", "RunInstances", parameters)
    group = mapping(provider.get("security_group"))
    if "IpPermissions" in group:
        parameters = {"IpPermissions": group["IpPermissions"]}
        yield from _call_problems("provider.security_group", "AuthorizeSecurityGroupIngress", parameters)


@functools.cache
def _ec2() -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2")


def _call_problems(field: str, call: str, parameters: dict[str, Any]) -> Iterator[Problem]:
    from botocore.validate import ParamValidator

    report = ParamValidator().validate(parameters, _ec2().operation_model(call).input_shape)
    values = {node.field: node.value for node in nodes(parameters, field)}
    for reason, place, details in report._errors:  # the public report repeats every valid name
        where, fix = f"{field}{place}", f"see EC2 {call}"
        if reason == "unknown field":
            where += f".{details['unknown_param']}"
            match = near(details["unknown_param"], details["valid_names"])
            rule, fix = (
                f"is not a parameter of EC2 {call}",
                f"did you mean {match!r}?" if match else "remove it",
            )
        elif reason == "missing required field":
            where, rule, fix = f"{where}.{details['required_name']}", "is missing", "set it"
        elif reason == "invalid type":
            types = re.findall(r"'(\w+)'", " ".join(details["valid_types"]))
            rule = f"must be of type {' or '.join(types)}"
        else:
            rule = f"has an {reason}"
        yield Problem(where, values.get(where), rule, fix)
