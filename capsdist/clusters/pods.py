"""Pod templates against the schema of Kubernetes, as the package kubernetes-validate knows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import util

from capsdist.clusters.json_schema import violations
from capsdist.errors import Problem

__all__ = ["can_validate", "template_problems"]


def can_validate() -> bool:
    """Return whether kubernetes-validate is installed: the extra `clusters` brings it, it takes 110 MB."""
    return util.find_spec("kubernetes_validate") is not None


def template_problems(field: str, template: object) -> Iterator[Problem]:
    """Yield the first violation in a pod template; none without kubernetes-validate."""
    if template is None or not can_validate():
        return
    import kubernetes_validate as kubernetes

    pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
    try:
        kubernetes.validate(pod, kubernetes.latest_version(), strict=True)
    except kubernetes.ValidationError as error:
        for problem in violations([error], "Kubernetes' pods"):
            yield replace(problem, field=field + problem.field.removeprefix("template"))
