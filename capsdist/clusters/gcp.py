"""Google Cloud: node_config against the fields of a Compute Engine instance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from capsdist.clusters.nodes import node_types
from capsdist.clusters.provider import provider_type
from capsdist.clusters.values import entries, mapping, near
from capsdist.errors import Problem

__all__ = ["problems"]

# Compute Engine API v1, instances.insert; sourceInstanceTemplate is Ray's, the last line is for TPU nodes.
_INSTANCE = {
    "advancedMachineFeatures", "canIpForward", "confidentialInstanceConfig", "deletionProtection",
    "description", "disks", "displayDevice", "guestAccelerators", "hostname", "instanceEncryptionKey",
    "keyRevocationActionType", "labels", "machineType", "metadata", "minCpuPlatform", "name",
    "networkInterfaces", "networkPerformanceConfig", "params", "privateIpv6GoogleAccess",
    "reservationAffinity", "resourcePolicies", "scheduling", "serviceAccounts", "shieldedInstanceConfig",
    "sourceInstanceTemplate", "sourceMachineImage", "tags", "workloadIdentityConfig",
    "acceleratorConfig", "acceleratorType", "networkConfig", "runtimeVersion", "schedulingConfig",
}  # fmt: skip
_SCHEDULING = {
    "automaticRestart", "availabilityDomain", "hostErrorTimeoutSeconds", "instanceTerminationAction",
    "localSsdRecoveryTimeout", "locationHint", "maxRunDuration", "minNodeCpus", "nodeAffinities",
    "onHostMaintenance", "onInstanceStopAction", "preemptible", "provisioningModel", "terminationTime",
}  # fmt: skip
_DISK = {
    "architecture", "autoDelete", "boot", "deviceName", "diskEncryptionKey", "diskSizeGb", "forceAttach",
    "guestOsFeatures", "index", "initializeParams", "interface", "kind", "licenses", "mode", "savedState",
    "source", "type",
}  # fmt: skip


def problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of a file for Google Cloud; none for others."""
    if provider_type(config) != "gcp":
        return
    for name, kind in node_types(config).items():
        field, node = f"available_node_types.{name}.node_config", mapping(kind.get("node_config"))
        yield from _unknown(field, node, _INSTANCE)
        yield from _unknown(f"{field}.scheduling", mapping(node.get("scheduling")), _SCHEDULING)
        for index, disk in enumerate(entries(node.get("disks"))):
            yield from _unknown(f"{field}.disks[{index}]", mapping(disk), _DISK)
        if not {"machineType", "acceleratorType", "acceleratorConfig"} & node.keys():
            yield Problem(f"{field}.machineType", None, "is missing", "set it, e.g. g2-standard-4")


def _unknown(field: str, value: dict[str, Any], known: Iterable[str]) -> Iterator[Problem]:
    for key in value.keys() - set(known):
        match = near(key, known)
        fix = f"did you mean {match!r}?" if match else "remove it"
        yield Problem(f"{field}.{key}", value[key], "is not a field of a Compute Engine instance", fix)
