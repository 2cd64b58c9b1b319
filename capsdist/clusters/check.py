"""Check one cluster file with every rule that fits its kind; report all problems, not the first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from capsdist.clusters import aws, commands, credentials, gcp, kuberay, mounts, nodes, provider, schema
from capsdist.clusters.reading import read_documents
from capsdist.errors import Problem

__all__ = ["check_file"]


def check_file(path: Path) -> list[Problem]:
    """Return every problem of a file for `ray up` or KubeRay; an empty list if there is none.

    Paths in it are taken relative to the working directory, as `ray up` does. AWS's parameters are compared
    with botocore's model of RunInstances where botocore is installed. Nothing is sent anywhere.

    Cost: about a second, the import of Ray's own validation.
    """
    documents, found = read_documents(path)
    if not documents:
        return found
    secret = [problem for document in documents for problem in credentials.problems(document)]
    if any("apiVersion" in document for document in documents):
        found += [problem for document in documents for problem in kuberay.problems(document)]
    else:
        found += _launcher_problems(documents[0])
    return [_without_secret(problem, secret) for problem in found] + secret


def _launcher_problems(config: dict[str, Any]) -> list[Problem]:
    found = [
        *schema.schema_problems(config),
        *provider.problems(config),
        *nodes.problems(config),
        *aws.problems(config),
        *gcp.problems(config),
        *mounts.problems(config),
        *commands.problems(config),
    ]
    # Ray's whole verdict comes last: on a file with the faults above it would end with a traceback.
    return found or list(schema.verdict(config))


def _without_secret(problem: Problem, secret: list[Problem]) -> Problem:
    """Return `problem`, without its value if a secret stands in it."""
    inside = any(other.field.startswith(problem.field) for other in secret)
    return replace(problem, value="...") if inside else problem
