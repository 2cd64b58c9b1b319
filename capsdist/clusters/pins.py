"""What commands install: every package at one version, no nightly wheel, the Ray that launches."""

from __future__ import annotations

import re
from collections.abc import Iterator

from capsdist.clusters.shell import simple_commands
from capsdist.clusters.values import ray_version
from capsdist.errors import Problem

__all__ = ["image_problems", "pin_problems"]

_NIGHTLY = re.compile(r"nightly|ray-wheels/|\.dev\d")
_PINNED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?===?(?P<version>[A-Za-z0-9.+!_-]+)")
_WITH_VALUE = {
    "-c", "--constraint", "--constraints", "-r", "--requirement", "--requirements", "--python", "-p", "-t",
    "--target", "-i", "--index-url", "--extra-index-url", "--index", "--default-index", "-f", "--find-links",
    "--prefix", "--root",
}  # fmt: skip


def pin_problems(field: str, command: str) -> Iterator[Problem]:
    """Yield what `command` installs without a fixed version, or from nightly wheels."""
    for words in simple_commands(command):
        for requirement in _requirements(words):
            yield from _requirement_problems(field, requirement)
        if "install" in words and "--pre" in words:
            yield Problem(field, "--pre", "installs pre-releases", "remove it, and pin versions")


def image_problems(field: str, image: str, version: str | None = None) -> Iterator[Problem]:
    """Yield whether a container image has no fixed tag, or not that of Ray `version`."""
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    if tag in ("", "latest") or _NIGHTLY.search(tag):
        rule = "is another image tomorrow"
        yield Problem(field, image, rule, f"give it a fixed tag that begins with {version or ray_version()}")
    elif version is not None and tag != version and not tag.startswith(f"{version}-"):
        rule = f"its tag is not that of Ray {version}: head, workers and jobs must have one Ray"
        yield Problem(field, image, rule, f"take a tag that begins with {version}")


def _requirements(words: list[str]) -> Iterator[str]:
    """Yield the packages that `pip install` or `uv pip install` in `words` asks for."""
    programs = [word.rpartition("/")[2] for word in words]
    if "install" not in programs or not {"pip", "pip3"} & set(programs[: programs.index("install")]):
        return
    rest = iter(words[programs.index("install") + 1 :])
    for word in rest:
        if word in _WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            yield word


def _requirement_problems(field: str, requirement: str) -> Iterator[Problem]:
    pinned = _PINNED.fullmatch(requirement)
    name = re.split(r"[\[=<>~! ;@]", requirement, maxsplit=1)[0]
    if _NIGHTLY.search(requirement):
        yield Problem(
            field, requirement, "is a nightly build, another one tomorrow", f"write ray=={ray_version()}"
        )
    elif pinned and pinned["name"].lower() == "ray" and pinned["version"] != ray_version():
        rule = f"is not the Ray that launches the cluster, {ray_version()}"
        yield Problem(field, requirement, rule, "install equal versions here and there")
    elif not pinned and not re.match(r"[.~/$]", requirement) and "://" not in requirement:
        yield Problem(field, requirement, "has no fixed version", f"write {name}==VERSION")
