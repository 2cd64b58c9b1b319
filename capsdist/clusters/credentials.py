"""Credentials that stand in a file instead of an instance profile; their values are never shown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from capsdist.errors import Problem

__all__ = ["problems"]

_NAMES = r"AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|RAY_AUTH_TOKEN|aws_secret_access_key|secret_key"
_ASSIGNED = re.compile(rf"\b(?:{_NAMES})=(?!\$)\S")
_NAME = re.compile(rf"(?:{_NAMES})")
_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_FIX = "remove it: nodes have an instance profile, pods a service account"


def problems(value: object, field: str = "") -> Iterator[Problem]:
    """Yield every place below `value` where a secret stands in clear."""
    if isinstance(value, dict):
        if _NAME.fullmatch(str(value.get("name"))) and value.get("value"):
            yield Problem(f"{field}.value", "...", f"is {value['name']} in clear", _FIX)
        for key, inner in value.items():
            place = f"{field}.{key}" if field else str(key)
            if _NAME.fullmatch(str(key)) and isinstance(inner, str):
                yield Problem(place, "...", "is a secret in clear", _FIX)
            else:
                yield from problems(inner, place)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from problems(inner, f"{field}[{index}]")
    elif isinstance(value, str) and (_ASSIGNED.search(value) or _ACCESS_KEY.search(value)):
        yield Problem(field, "...", "holds a secret in clear", _FIX)
