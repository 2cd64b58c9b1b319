"""Policy: no secrets in clear. Their values are never shown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from capsdist.clusters.walk import nodes
from capsdist.errors import Problem

__all__ = ["problems"]

_NAME = r"(?:[\w-]{0,50}[_-])?(?:secret|password|passwd|token|(?:api|access|secret|private)[_-]?key)"
_ELSEWHERE = r"[\"']?(?:[$~/<]|\./|YOUR-)"  # a variable, a file, a placeholder
_SECRET = re.compile(
    rf"(?i:(?<![\w-]){_NAME}=(?!{_ELSEWHERE})\S|--{_NAME}\s+(?!{_ELSEWHERE})\S)"
    r"|\bBearer\s+[^\s$\"']{8}|://[^/\s:@]+:[^/\s:@$]+@"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\b(?:gh[pousr]|github_pat|hf)_\w{16}|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_FIX = "remove it: nodes have an instance profile, pods a service account or a secretKeyRef"


def problems(document: dict[str, object]) -> Iterator[Problem]:
    """Yield every place where a secret stands in clear."""
    for field, name, value in nodes(document):
        what = "a secret"
        if isinstance(value, dict):
            for key in {"data", "stringData"} & value.keys() if value.get("kind") == "Secret" else ():
                yield Problem(f"{field}.{key}".lstrip("."), "...", "holds a secret in clear", _FIX)
            what = name = str(value.get("name"))  # an environment variable of a pod
            field, value = f"{field}.value", value.get("value")
        if isinstance(value, str) and _SECRET.search(f"{name}={value}"):
            yield Problem(field, "...", f"holds {what} in clear", _FIX)
