"""The files of one training step that capsdist/train/README.md lists are those that run, in that order."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from types import FrameType

import pytest
from small_run import run_small, small_config, write_data

import capsdist
from capsdist.routing.dynamic import streamed
from capsdist.train import loop

PACKAGE = Path(capsdist.__file__).parent
README = (PACKAGE / "train/README.md").read_text()
LISTED = re.findall(r"^\d+\. `(\S+)`", README, flags=re.MULTILINE)


def test_the_list_is_the_path_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    stacks: list[set[str]] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            ran.append(path.relative_to(PACKAGE).as_posix())

    step, passes = loop._Loop._train, streamed.add_totals

    def profiled(*given) -> None:
        sys.setprofile(note)
        try:
            step(*given)
        finally:
            sys.setprofile(None)

    def noted(*given) -> None:
        paths = [Path(frame.filename) for frame in traceback.extract_stack()]
        last = max(i for i, path in enumerate(paths) if path.name == "loop.py")
        stacks.append({p.relative_to(PACKAGE).as_posix() for p in paths[last:] if p.is_relative_to(PACKAGE)})
        passes(*given)

    monkeypatch.setattr(loop._Loop, "_train", profiled)
    monkeypatch.setattr(streamed, "add_totals", noted)
    write_data(tmp_path)
    run_small(small_config(tmp_path, max_steps=2), tmp_path / "checkpoints")
    first_calls = list(dict.fromkeys(ran))
    assert [name for name in first_calls if name in LISTED] == LISTED
    assert stacks[0] <= set(LISTED)
    assert len(LISTED) <= 14
