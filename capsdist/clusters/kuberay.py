"""KubeRay: RayCluster and RayJob, whose defaults leave tokens off and a finished job's cluster running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capsdist.clusters.pins import image_problems
from capsdist.clusters.shell import simple_commands
from capsdist.clusters.values import entries, integer, mapping, near
from capsdist.errors import Problem

__all__ = ["problems"]

_KINDS = ("RayCluster", "RayJob")
_CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
    "headGroupSpec", "headServiceAnnotations", "managedBy", "networkPolicy", "rayVersion", "suspend",
    "upgradeStrategy", "workerGroupSpecs",
}  # fmt: skip
_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
    "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes",
    "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
_GROUP = {
    "groupName", "headService", "enableIngress", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas",
    "numOfHosts", "priority", "rayStartParams", "replicas", "resources", "scaleStrategy", "serviceType",
    "suspend", "template",
}  # fmt: skip

# What a container may ask for; other names belong to plugins of other devices.
_RESOURCES = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu", "amd.com/gpu", "google.com/tpu"}


def problems(document: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of one Kubernetes object; objects that are not Ray's are left alone."""
    version, kind = str(document.get("apiVersion")), document.get("kind")
    if not version.startswith("ray.io/"):
        return
    if version != "ray.io/v1":
        yield Problem("apiVersion", version, "is an old version of KubeRay's API", "set ray.io/v1")
    if kind not in _KINDS:
        match = near(kind, _KINDS)
        fix = f"did you mean {match!r}?" if match else f"this checker knows {' and '.join(_KINDS)}"
        yield Problem("kind", kind, "is not checked here", fix)
        return
    spec = mapping(document.get("spec"))
    if kind == "RayJob":
        yield from _job_problems(spec)
    else:
        yield from _cluster_problems("spec", spec)


def _job_problems(spec: dict[str, Any]) -> Iterator[Problem]:
    yield from _misspelt("spec", spec, _JOB)
    if not spec.get("entrypoint"):
        yield Problem("spec.entrypoint", None, "is missing", "set it, e.g. python jobs/train_cifar.py")
    yield from _script_problems(str(spec.get("entrypoint") or ""))
    if "clusterSelector" in spec:
        return  # it runs on a cluster that stays
    if spec.get("shutdownAfterJobFinishes") is not True:
        value = spec.get("shutdownAfterJobFinishes")
        rule = "leaves the cluster and its bill running when the job has ended"
        yield Problem("spec.shutdownAfterJobFinishes", value, rule, "set it to true")
    if integer(spec.get("ttlSecondsAfterFinished"), 0) <= 0:
        value = spec.get("ttlSecondsAfterFinished")
        rule = "takes pods and logs away in the moment the job ends"
        yield Problem("spec.ttlSecondsAfterFinished", value, rule, "set e.g. 300")
    yield from _cluster_problems("spec.rayClusterSpec", mapping(spec.get("rayClusterSpec")))


def _script_problems(entrypoint: str) -> Iterator[Problem]:
    """Yield a job of this checkout that does not exist; other scripts may be in the image alone."""
    known = [str(path) for path in sorted(Path("jobs").glob("*.py"))]
    for words in simple_commands(entrypoint):
        for word in words:
            if known and word.startswith("jobs/") and word.endswith(".py") and word not in known:
                match = near(word, known)
                fix = f"did you mean {match!r}?" if match else f"choose one of {', '.join(known)}"
                yield Problem("spec.entrypoint", word, "does not exist", fix)


def _cluster_problems(field: str, spec: dict[str, Any]) -> Iterator[Problem]:
    yield from _misspelt(field, spec, _CLUSTER)
    version = spec.get("rayVersion")
    if not version:
        yield Problem(f"{field}.rayVersion", version, "is missing", "set the Ray version of the image")
    mode = mapping(spec.get("authOptions")).get("mode")
    if mode != "token":
        rule = "lets everyone in the Kubernetes cluster run jobs"
        yield Problem(f"{field}.authOptions.mode", mode, rule, "set authOptions: {mode: token}")
    head = mapping(spec.get("headGroupSpec"))
    yield from _head_problems(f"{field}.headGroupSpec", head)
    yield from _group_problems(f"{field}.headGroupSpec", head, spec)
    for index, group in enumerate(entries(spec.get("workerGroupSpecs"))):
        place = f"{field}.workerGroupSpecs[{index}]"
        yield from _count_problems(place, mapping(group))
        yield from _group_problems(place, mapping(group), spec)


def _head_problems(field: str, head: dict[str, Any]) -> Iterator[Problem]:
    cpus = mapping(head.get("rayStartParams")).get("num-cpus")
    if str(cpus) != "0":
        rule = "lets the head train, which then starves what schedules the cluster"
        yield Problem(f"{field}.rayStartParams.num-cpus", cpus, rule, 'set num-cpus: "0"')
    service = mapping(mapping(head.get("headService")).get("spec")).get("type")
    for place, value in (
        (f"{field}.serviceType", head.get("serviceType")),
        (f"{field}.headService.spec.type", service),
    ):
        if value in ("LoadBalancer", "NodePort"):
            rule = "opens dashboard, client and GCS outside the Kubernetes cluster"
            yield Problem(place, value, rule, "set ClusterIP, and use kubectl port-forward")
    if head.get("enableIngress"):
        rule = "opens the dashboard outside the Kubernetes cluster"
        yield Problem(f"{field}.enableIngress", True, rule, "remove it, and use kubectl port-forward")


def _count_problems(field: str, group: dict[str, Any]) -> Iterator[Problem]:
    least, most = integer(group.get("minReplicas"), 0), integer(group.get("maxReplicas"), 2**31 - 1)
    now = integer(group.get("replicas"), least)
    if "maxReplicas" not in group:
        yield Problem(f"{field}.maxReplicas", None, "is missing: nothing limits the bill", "set it")
    if least > most:
        yield Problem(f"{field}.minReplicas", least, f"exceeds maxReplicas={most}", f"set at most {most}")
    elif not least <= now <= most:
        rule = f"is not between minReplicas={least} and maxReplicas={most}"
        yield Problem(f"{field}.replicas", now, rule, f"set {least}")


def _group_problems(field: str, group: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    yield from _misspelt(field, group, _GROUP)
    pod = mapping(mapping(group.get("template")).get("spec"))
    place = f"{field}.template.spec"
    if spec.get("enableInTreeAutoscaling") and pod.get("restartPolicy") != "Never":
        rule = "lets a pod come back under the name of a node that the autoscaler has written off"
        yield Problem(f"{place}.restartPolicy", pod.get("restartPolicy"), rule, "set Never")
    if pod.get("hostNetwork"):
        yield Problem(f"{place}.hostNetwork", True, "opens Ray's ports on the machine's network", "remove it")
    for index, container in enumerate(entries(pod.get("containers"))):
        where, settings = f"{place}.containers[{index}]", mapping(container)
        version = str(spec.get("rayVersion")) if index == 0 and spec.get("rayVersion") else None
        yield from image_problems(f"{where}.image", str(settings.get("image") or ""), version)
        resources = mapping(settings.get("resources"))
        for key in ("requests", "limits"):
            asked = mapping(resources.get(key))
            yield from _misspelt(f"{where}.resources.{key}", asked, _RESOURCES, "a resource of Kubernetes")
        for number, port in enumerate(entries(settings.get("ports"))):
            if value := mapping(port).get("hostPort"):
                rule = "opens the port on the machine's network"
                yield Problem(f"{where}.ports[{number}].hostPort", value, rule, "remove it")


def _misspelt(
    field: str, value: dict[str, Any], known: set[str], what: str = "a field of KubeRay"
) -> Iterator[Problem]:
    """Yield keys that look like another one; an unlike one may belong to a newer KubeRay."""
    for key in value.keys() - known:
        if match := near(key, known, alike=0.8):
            yield Problem(f"{field}.{key}", value[key], f"is not {what}", f"did you mean {match!r}?")
