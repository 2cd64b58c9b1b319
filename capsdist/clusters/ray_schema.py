"""Ray's own rules of a cluster file: its JSON schema with all errors, then its whole validation.

`ray up` runs the same, but stops at the first error and after it has filled in defaults.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capsdist.clusters.json_schema import violations
from capsdist.errors import Problem

__all__ = ["schema_problems", "verdict"]


def schema_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield every violation of Ray's schema."""
    import jsonschema
    import ray.autoscaler

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    return violations(jsonschema.Draft7Validator(schema).iter_errors(config), "Ray's cluster files")


def verdict(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield what Ray's preparation and validation say about a file that the schema accepts."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            validate_config(prepare_config(config))
    except (Exception, SystemExit) as error:
        # Ray's own messages end the process after they were printed, among warnings and in colour.
        text = printed.getvalue() if isinstance(error, SystemExit) else getattr(error, "message", str(error))
        reason = " ".join(re.sub(r"\x1b\[\d*m", "", text).split()) or type(error).__name__
        yield Problem("file", config.get("cluster_name"), f"Ray refuses it: {reason}", "correct it")
