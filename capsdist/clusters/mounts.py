"""Files that go to the nodes: they exist, the secret ones are private, and none is a whole checkout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capsdist.clusters.provider import provider_type
from capsdist.clusters.values import mapping
from capsdist.errors import Problem

__all__ = ["problems"]

_MAKE_TOKEN = (
    "make one: mkdir -p ~/.ray && install -m 600 /dev/null {path} && "
    "python -c 'import secrets; print(secrets.token_hex(32))' > {path}"
)


def problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of `file_mounts` and of the ssh key in `auth`."""
    mounts = mapping(config.get("file_mounts"))
    for remote, local in mounts.items():
        yield from _mount_problems(f"file_mounts.{remote}", str(local))
    tokens = [remote for remote in mounts if _is_token(remote)]
    if not tokens and provider_type(config) != "external":
        rule = "brings no token to the nodes: Ray's ports would take jobs from anyone who reaches them"
        fix = "mount ~/.ray/auth_token: ~/.ray/auth_token"
        yield Problem("file_mounts", list(mounts), rule, fix)
    key = mapping(config.get("auth")).get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        yield Problem("auth.ssh_private_key", key, "does not exist", "name the key that opens the machines")
    elif key:
        yield from _private("auth.ssh_private_key", key)


def _mount_problems(field: str, local: str) -> Iterator[Problem]:
    path = Path(local).expanduser()
    if not path.exists():
        make = (
            _MAKE_TOKEN.format(path=local) if _is_token(local) else f"create it; paths start at {Path.cwd()}"
        )
        yield Problem(field, local, "does not exist", make)
    elif _is_token(local):
        yield from _private(field, local)
    elif (path / ".git").exists():
        rule = "is a whole checkout: at every `ray up` Ray reads each file of it, whatever rsync_exclude says"
        yield Problem(field, local, rule, "mount its parts")


def _private(field: str, local: str) -> Iterator[Problem]:
    mode = Path(local).expanduser().stat().st_mode & 0o777
    if mode & 0o077:
        yield Problem(field, local, f"has mode {mode:04o}, others can read it", f"chmod 600 {local}")


def _is_token(path: str) -> bool:
    return Path(path).name == "auth_token"
