"""Violations of a JSON schema as problems: all of them, each with place, value and remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from capsdist.clusters.walk import near
from capsdist.errors import Problem

__all__ = ["violations"]


def violations(errors: Iterable[Any], what: str, root: str = "") -> Iterator[Problem]:
    """Yield the errors that a jsonschema validator found in the part `root` of a document.

    `what` names the schema, e.g. "Ray's cluster files".
    """
    for error in errors:
        field = root
        for step in error.absolute_path:
            field += f"[{step}]" if isinstance(step, int) else f".{step}"
        field = field.lstrip(".")
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            for name in error.instance.keys() - known.keys():
                match = near(name, known)
                fix = f"did you mean {match!r}?" if match else "remove it"
                value = error.instance[name]
                yield Problem(f"{field}.{name}".lstrip("."), value, f"is not a field of {what}", fix)
        elif error.validator == "required":
            for name in set(error.validator_value) - error.instance.keys():
                yield Problem(f"{field}.{name}".lstrip("."), None, "is missing", "set it")
        elif error.validator in ("type", "minimum"):
            rule = f"must have {error.validator} {error.validator_value!r} in {what}"
            yield Problem(field or "file", error.instance, rule, "correct it")
        else:
            rule = f"does not fit {what}"
            known = error.validator_value if error.validator == "enum" else []
            fix = f"choose one of {', '.join(map(str, known))}" if known else "correct it"
            yield Problem(field or "file", error.instance, rule, fix)
