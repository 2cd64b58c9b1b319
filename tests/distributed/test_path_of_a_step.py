"""The files of one training step that capsdist/README.md lists are those that run, in that order."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from types import FrameType

import pytest
from small_run import run_small, small_config, write_data
from torch import Tensor

import capsdist
from capsdist.routing.dynamic import streamed

PACKAGE = Path(capsdist.__file__).parent
README = (PACKAGE / "README.md").read_text()
LISTED = re.findall(r"`(\S+\.py)`", README.partition("## One training step")[2].partition("##")[0])


def names(paths: Iterator[str]) -> list[str]:
    """Files of the package among `paths`, each once."""
    own = (Path(path).relative_to(PACKAGE) for path in paths if Path(path).is_relative_to(PACKAGE))
    return list(dict.fromkeys(path.as_posix() for path in own))


def test_the_list_is_the_path_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    stacks: list[list[str]] = []
    passes = streamed.add_totals

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_filename)

    def observe(step: int, sample_ids: Tensor) -> None:
        sys.setprofile(note if step == 0 else None)

    def noted(*given) -> None:
        stacks.append(names(frame.filename for frame in traceback.extract_stack()))
        passes(*given)

    monkeypatch.setattr(streamed, "add_totals", noted)
    write_data(tmp_path)
    run_small(small_config(tmp_path, max_steps=1), tmp_path / "checkpoints", observe=observe)
    assert [name for name in names(iter(called)) if name in LISTED] == LISTED
    assert set(dropwhile(lambda name: name != "train/loop.py", stacks[0])) <= set(LISTED)
    assert len(LISTED) <= 14
