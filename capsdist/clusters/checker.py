"""Check one cluster file with every rule that fits its kind; report all problems, not the first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from capsdist.clusters import access, credentials, kuberay_fields, pins, pods, ray_schema, run_instances
from capsdist.clusters.cluster_file import read_documents
from capsdist.errors import Problem

__all__ = ["check_file", "unchecked"]


def check_file(path: Path) -> list[Problem]:
    """Return the problems of a file for `ray up` or KubeRay; an empty list if none was found.

    Paths in it are taken relative to the working directory, as `ray up` does. Nothing is sent anywhere.

    Cost: about a second, the import of Ray's own validation.
    """
    documents, found = read_documents(path)
    if not documents:
        return found
    secret = [problem for document in documents for problem in credentials.problems(document)]
    found += [problem for document in documents for problem in pins.problems(document)]
    if any("apiVersion" in document for document in documents):
        for document in documents:
            found += [*kuberay_fields.problems(document), *access.object_problems(document)]
    else:
        found += _launcher_problems(documents[0])
        # Ray's whole verdict comes last: on a file with the faults above it would end with a traceback.
        found = found or ([] if secret else list(ray_schema.verdict(documents[0])))
    return [_without_secret(problem, secret) for problem in found] + secret


def unchecked(path: Path) -> list[str]:
    """Return what is not checked in this file because a package is missing, a sentence each."""
    documents, _ = read_documents(path)
    if pods.can_validate() or not any("apiVersion" in document for document in documents):
        return []
    return ["pod templates are not compared with Kubernetes' schema: pip install kubernetes-validate"]


def _launcher_problems(config: dict[str, Any]) -> list[Problem]:
    return [
        *ray_schema.schema_problems(config),
        *run_instances.problems(config),
        *access.launcher_problems(config),
    ]


def _without_secret(problem: Problem, secret: list[Problem]) -> Problem:
    """Return `problem`, without its value if a secret stands in it."""
    inside = any(other.field.startswith(problem.field) for other in secret)
    return replace(problem, value="...") if inside else problem
