"""Ray's own rules of a cluster file: its JSON schema with all errors, then its whole validation.

Ours. `ray up` runs the same, but stops at the first error and after it has filled in defaults.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capsdist.clusters.values import near
from capsdist.errors import Problem

__all__ = ["schema_problems", "verdict"]


def schema_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield every violation of Ray's schema."""
    import jsonschema
    import ray.autoscaler

    text = Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text()
    for error in jsonschema.Draft7Validator(json.loads(text)).iter_errors(config):
        field = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties":
            yield from _unknown(field, error.instance, error.schema)
        elif error.validator == "required":
            missing = error.message.split("'")[1]
            yield Problem(_join(field, missing), None, "is missing", "set it")
        else:
            rule = f"must have {error.validator} {error.validator_value!r} in Ray's schema"
            yield Problem(field or "file", error.instance, rule, "correct it")


def verdict(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield what Ray's preparation and validation say about a file that the schema accepts."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            validate_config(prepare_config(config))
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{said.getvalue()} {error}".split()) or type(error).__name__
        yield Problem("file", config.get("cluster_name"), f"Ray refuses it: {reason}", "correct it")


def _unknown(field: str, value: dict[str, Any], allowed: Any) -> Iterator[Problem]:
    known = allowed.get("properties", {})
    for name in value.keys() - known.keys():
        match = near(name, known)
        yield Problem(
            _join(field, name),
            value[name],
            "is not a field of Ray's cluster files",
            f"did you mean {match!r}?" if match else "remove it",
        )


def _join(field: str, name: object) -> str:
    return f"{field}.{name}" if field else str(name)
