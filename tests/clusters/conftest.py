"""A home with token and ssh key, as `ray up` wants it, and a shipped file with one thing broken."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from breaking import DELETE, Break

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "multihost"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: Path) -> Path:
    """HOME with a private token and key; the working directory is the checkout."""
    folder = tmp_path / "home"
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("secret")
        (folder / name).chmod(0o600)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(repo)
    return folder


@pytest.fixture
def broken(home: Path, repo: Path) -> Break:
    """Returns a function that writes a shipped file with the value at one place replaced or removed."""

    def write(name: str, place: str, value: Any) -> Path:
        config = json.loads(json.dumps(yaml.safe_load((repo / "cluster" / name).read_text())))  # no aliases
        *way, last = [
            int(index) if index else key for key, index in re.findall(r"([^.[\]]+)|\[(\d+)\]", place)
        ]
        inner = config
        for key in way:
            inner = inner[key]
        if value is DELETE:
            del inner[last]
        else:
            inner[last] = value
        path = home / Path(name).name
        path.write_text(yaml.safe_dump(config))
        return path

    return write
