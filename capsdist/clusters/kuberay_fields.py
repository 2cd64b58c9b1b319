"""The fields of RayCluster and RayJob (KubeRay 1.7), and those whose defaults cost money."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from capsdist.clusters.json_schema import violations
from capsdist.clusters.pods import template_problems
from capsdist.clusters.walk import entries, mapping, near
from capsdist.errors import Problem

__all__ = ["problems"]


def _object(required: tuple[str, ...] = (), /, **fields: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": fields, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


_ANY, _TEXT, _FLAG, _COUNT = {"type": "object"}, {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
_LIST, _LABELS = {"type": "array"}, {"type": "object", "additionalProperties": _TEXT}
_GROUP = {"rayStartParams": _LABELS, "template": _ANY, "resources": _LABELS, "labels": _LABELS}
_HEAD = _object(
    ("template",), **_GROUP, enableIngress=_FLAG, headService=_ANY, ingressOptions=_ANY, serviceType=_TEXT
)
_WORKERS = _object(
    ("groupName", "template"), **_GROUP, groupName=_TEXT, replicas=_COUNT, minReplicas=_COUNT,
    maxReplicas=_COUNT, numOfHosts=_COUNT, idleTimeoutSeconds=_COUNT, priority=_COUNT, suspend=_FLAG,
    scaleStrategy=_object(workersToDelete=_LIST),
)  # fmt: skip
_AUTOSCALER = _object(
    args=_LIST, command=_LIST, env=_LIST, envFrom=_LIST, idleTimeoutSeconds=_COUNT, image=_TEXT,
    imagePullPolicy=_TEXT, resources=_ANY, securityContext=_ANY, volumeMounts=_LIST,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}, version={"enum": ["v1", "v2"]},
)  # fmt: skip
_CLUSTER = _object(
    ("headGroupSpec", "rayVersion"), rayVersion=_TEXT, headGroupSpec=_HEAD, headServiceAnnotations=_LABELS,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
    authOptions=_object(
        mode={"enum": ["token", "disabled"]}, secretName=_TEXT, enableK8sTokenAuth=_FLAG
    ),
    autoscalerOptions=_AUTOSCALER, enableInTreeAutoscaling=_FLAG, gcsFaultToleranceOptions=_ANY,
    historyServerOptions=_ANY, managedBy=_TEXT, networkPolicy=_ANY, suspend=_FLAG,
    tlsOptions=_object(enabled=_FLAG), upgradeStrategy=_object(type={"enum": ["Recreate", "None"]}),
)  # fmt: skip
_JOB = _object(
    ("entrypoint",), activeDeadlineSeconds=_COUNT, backoffLimit=_COUNT, clusterSelector=_LABELS,
    deletionStrategy=_ANY, entrypoint=_TEXT, entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"}, entrypointResources=_TEXT, jobId=_TEXT, managedBy=_TEXT,
    metadata=_LABELS, preRunningDeadlineSeconds={"type": "integer", "minimum": 1}, rayClusterSpec=_CLUSTER,
    runtimeEnvYAML={}, shutdownAfterJobFinishes=_FLAG,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterConfig=_object(backoffLimit=_COUNT), submitterPodTemplate=_ANY, suspend=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
)  # fmt: skip
_KINDS = {"RayCluster": _CLUSTER, "RayJob": _JOB}


def problems(document: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of one Kubernetes object; objects that are not Ray's are left alone."""
    version, kind = str(document.get("apiVersion")), str(document.get("kind"))
    if not version.startswith("ray.io/"):
        return
    if version != "ray.io/v1":
        yield Problem("apiVersion", version, "is an old version of KubeRay's API", "set ray.io/v1")
    if kind not in _KINDS:
        match = near(kind, _KINDS)
        fix = f"did you mean {match!r}?" if match else f"this checker knows {' and '.join(_KINDS)}"
        yield Problem("kind", kind, "is not checked here", fix)
        return
    import jsonschema

    errors = jsonschema.Draft7Validator(_KINDS[kind]).iter_errors(document.get("spec"))
    yield from violations(errors, f"KubeRay's {kind}", "spec")
    spec = mapping(document.get("spec"))
    if kind == "RayCluster":
        yield from _cluster_problems("spec", spec)
    else:
        yield from template_problems("spec.submitterPodTemplate", spec.get("submitterPodTemplate"))
        if "clusterSelector" not in spec:  # else it runs on a cluster that stays
            yield from _job_problems(spec)
            yield from _cluster_problems("spec.rayClusterSpec", mapping(spec.get("rayClusterSpec")))


def _job_problems(spec: dict[str, Any]) -> Iterator[Problem]:
    ends, seconds = spec.get("shutdownAfterJobFinishes"), spec.get("ttlSecondsAfterFinished")
    if ends is not True:
        rule = "leaves the cluster and its bill running when the job has ended"
        yield Problem("spec.shutdownAfterJobFinishes", ends, rule, "set it to true")
    if not seconds or (isinstance(seconds, int) and seconds < 0):
        rule = "takes pods and logs away in the moment the job ends"
        yield Problem("spec.ttlSecondsAfterFinished", seconds, rule, "set e.g. 300")


def _cluster_problems(field: str, spec: dict[str, Any]) -> Iterator[Problem]:
    mode = mapping(spec.get("authOptions")).get("mode")
    if mode != "token":
        rule = "lets everyone in the Kubernetes cluster run jobs"
        yield Problem(f"{field}.authOptions.mode", mode, rule, "set authOptions: {mode: token}")
    head = mapping(spec.get("headGroupSpec"))
    cpus = mapping(head.get("rayStartParams")).get("num-cpus")
    if str(cpus) != "0":
        rule = "lets the head train, which then starves what schedules the cluster"
        yield Problem(f"{field}.headGroupSpec.rayStartParams.num-cpus", cpus, rule, 'set num-cpus: "0"')
    groups = {f"{field}.headGroupSpec": head}
    for index, group in enumerate(entries(spec.get("workerGroupSpecs"))):
        groups[f"{field}.workerGroupSpecs[{index}]"] = mapping(group)
        yield from _count_problems(f"{field}.workerGroupSpecs[{index}]", mapping(group))
    for place, group in groups.items():
        yield from template_problems(f"{place}.template", group.get("template"))
        policy = mapping(mapping(group.get("template")).get("spec")).get("restartPolicy")
        if spec.get("enableInTreeAutoscaling") and policy != "Never":
            rule = "lets a pod come back under the name of a node that the autoscaler has written off"
            yield Problem(f"{place}.template.spec.restartPolicy", policy, rule, "set Never")


def _count_problems(field: str, group: dict[str, Any]) -> Iterator[Problem]:
    least, most = group.get("minReplicas", 0), group.get("maxReplicas")
    now = group.get("replicas", least)
    if most is None:
        yield Problem(f"{field}.maxReplicas", None, "is missing: nothing limits the bill", "set it")
    if not all(isinstance(count, int) for count in (least, now, most)):
        return  # the schema has reported it
    if least > most:
        yield Problem(f"{field}.minReplicas", least, f"exceeds maxReplicas={most}", f"set at most {most}")
    elif not least <= now <= most:
        rule = f"is not between minReplicas={least} and maxReplicas={most}"
        yield Problem(f"{field}.replicas", now, rule, f"set {least}")
