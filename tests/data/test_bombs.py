"""Files that claim or unpack to very much end in one line, in little memory and time, whatever their kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bombs import BOMBS, LIMIT_MIB, LIMIT_S

from limits import PATIENCE_S

READ = {"png, too many data", "index, sides"}
"""What is read, as far as it is of use."""


@pytest.fixture(scope="module")
def exploded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict], str]:
    """What came of each bomb, by name, and what else the process printed."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "bombs.py"), str(tmp_path_factory.mktemp("bombs"))],
        env={**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here.parent}"},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["name"]: each for each in found}, done.stderr


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line_in_little_memory(exploded, name):
    found, errors = exploded
    assert name in found, errors
    one = found[name]
    assert "not a DataError" not in one["error"], one
    assert one["error"] or name in READ
    assert len(one["error"].splitlines()) <= 1
    assert one["mib"] < LIMIT_MIB, one
    assert one["seconds"] < LIMIT_S, one


def test_no_library_prints_warnings_of_its_own(exploded):
    assert exploded[1] == ""
