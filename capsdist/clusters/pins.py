"""Policy: every package and image at one version, no nightly build, the Ray that launches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from capsdist.clusters.shell import commands
from capsdist.clusters.walk import mapping, nodes
from capsdist.errors import Problem

__all__ = ["problems"]

_MOVING = re.compile(r"nightly|latest|ray-wheels/|\.dev\d")
# Words are separated by NUL.
_INSTALL = r"(?:^|[\0/])(?:(pip[\d.]*|pipx|uv\0tool|\w*conda|\w*mamba)\0(?:-[^\0]*\0)*install|(uv)\0add)\0"
_WITH_VALUE = re.compile(
    r"-[cfinprt]|--(?:constraints?|requirements?|python|target|index|[a-z]+-(?:index|url)|extra-index-url"
    r"|find-links|prefix|root|name|channel)"
)


def problems(document: dict[str, Any]) -> Iterator[Problem]:
    """Yield what commands, runtime environments and images install without a fixed version."""
    for field, words in commands(document):
        yield from _install_problems(field, words)
    spec = mapping(document.get("spec"))
    version = str(mapping(spec.get("rayClusterSpec", spec)).get("rayVersion") or "")
    for field, name, value in nodes(document):
        if isinstance(value, str) and re.search(r"\.(?:pip|uv)(?:\.packages)?\[\d+\]$", field):
            yield from _requirement_problems(field, value)
        if isinstance(value, str) and name in ("image", "head_image", "worker_image"):
            wanted = version if field.endswith(".containers[0].image") else ""
            yield from _image_problems(field, value, wanted)


def _install_problems(field: str, words: list[str]) -> Iterator[Problem]:
    found = re.search(_INSTALL, "\0".join(words))
    rest = iter(found.string[found.end() :].split("\0") if found else ())
    conda = found and str(found[1]).endswith(("conda", "mamba"))
    for word in rest:
        value = next(rest, "") if _WITH_VALUE.fullmatch(word) else word
        if word == "--pre":
            yield Problem(field, "--pre", "installs pre-releases", "remove it, and pin versions")
        elif not word.startswith("-"):
            text = re.sub(r"(?<![=<>!~])=(?!=)", "==", word) if conda else word
            yield from _requirement_problems(field, text)
        elif "nightly" in value:
            yield Problem(field, value, "offers nightly builds", "take an index of releases")


def _requirement_problems(field: str, text: str) -> Iterator[Problem]:
    try:
        wanted = Requirement(text)
        name, url, pins = wanted.name, wanted.url, wanted.specifier
    except InvalidRequirement:
        name, url, pins = text, text if "://" in text else None, ()
    exact = [pin.version for pin in pins if pin.operator in ("==", "===") and not pin.version.endswith("*")]
    ray = metadata.version("ray")
    if _MOVING.search(text):
        yield Problem(field, text, "is a nightly build, another one tomorrow", f"write ray=={ray}")
    elif url:
        if url.startswith("git+") and not re.search(r"@(?:[0-9a-f]{7,40}|v?\d[\w.]*)(?:#|$)", url):
            yield Problem(field, text, "has no fixed version", "append @COMMIT")
    elif not exact and not re.match(r"[.~/$]", text):
        yield Problem(field, text, "has no fixed version", f"write {name}==VERSION")
    elif exact and name.lower() == "ray" and exact[0] != ray:
        rule = f"is not the Ray that launches the cluster, {ray}"
        yield Problem(field, text, rule, "install equal versions here and there")


def _image_problems(field: str, image: str, version: str) -> Iterator[Problem]:
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    version = version or (metadata.version("ray") if "rayproject/" in name else "")
    if not digest and (not re.search(r"\d+\.\d+|[0-9a-f]{7}", tag) or _MOVING.search(tag)):
        yield Problem(field, image, "is another image tomorrow", "give it the tag of one version")
    elif tag and version and tag != version and not tag.startswith(f"{version}-"):
        rule = f"its tag is not that of Ray {version}: head, workers and jobs must have one Ray"
        yield Problem(field, image, rule, f"take a tag that begins with {version}")
