"""What may happen to the files of a folder, as hypothesis draws it: disks, copies, editors and strangers.

    @given(accidents())
    def test(each): each.apply(folder, outside)

`Accident.apply` changes one file below a folder. It never touches `outside`, a tree beside it, but may place
symbolic links to it: `fingerprint` tells whether anything followed them in order to write or delete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

__all__ = [
    "CONTENT", "MEMORY", "PHASES", "Accident", "accidents", "copied", "damaged", "fingerprint", "has_files",
    "make_outside",
]  # fmt: skip

T = TypeVar("T")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A folder for small files that are flushed often, None for the usual one."""
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Those of hypothesis that are of use: accidents are small as they are."""
CASES = [120, pytest.param(5000, marks=pytest.mark.slow)]
"""How many accidents a property is tried with, as values of a test's parameter."""
_JUNK: list[Any] = [None, True, -1, 2**70, 1e308, 0.5, "", "..", "/etc/passwd", [], {}, [[1]], {"a": 1}]
_NOT_JSON = (b"NaN", b"Infinity", b"-Infinity", b"[" * 5000, b"9" * 5000, b"1e999", b"\xff", b"\x00")


@dataclass(frozen=True)
class Accident:
    """`what` happens to the file that `which` chooses; where: where in it; seed: of what is random in it."""

    what: str
    which: float
    where: float
    seed: int

    def file(self, folder: Path) -> Path:
        """Return the file below `folder` that it happens to."""
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        return files[int(self.which * len(files))]

    def apply(self, folder: Path, outside: Path) -> Path:
        """Let it happen below `folder`; return the path that is changed."""
        path = self.file(folder)
        content = path.read_bytes()
        if self.what in CONTENT:
            path.write_bytes(CONTENT[self.what](content, self.where, random.Random(self.seed)))
        elif self.what == "delete":
            path.unlink()
        elif self.what in ("delete its folder", "link its folder"):
            path = path.parent if path.parent != folder else path
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            if self.what == "link its folder":
                path.symlink_to(outside / "folder")
        elif self.what == "exchange":
            path.write_bytes(Accident("", self.where, 0, 0).file(folder).read_bytes())
        else:
            path.unlink()
            PLACED[self.what](path, outside)
        return path


def damaged(content: bytes, what: str, where: float, seed: int) -> bytes:
    """Return `content` after an accident that leaves a file: one of `CONTENT`."""
    return CONTENT[what](content, where, random.Random(seed))


def _flip(content: bytes, where: float, rng: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    changed[int(where * len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _many_flips(content: bytes, where: float, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(2, 30)):
        content = _flip(content, rng.random(), rng)
    return content


def _overwrite(content: bytes, where: float, rng: random.Random) -> bytes:
    start = int(where * len(content))
    return content[:start] + rng.randbytes(min(64, len(content) - start)) + content[start + 64 :]


def _zero_block(content: bytes, where: float, rng: random.Random) -> bytes:
    start = int(where * len(content))
    return content[:start] + bytes(min(512, len(content) - start)) + content[start + 512 :]


def _in_json(change: Callable[[str, random.Random], str]) -> Callable[[bytes, float, random.Random], bytes]:
    """Apply a change of text to a JSON file, or to a line of one with many documents; else flip a bit."""

    def apply(content: bytes, where: float, rng: random.Random) -> bytes:
        lines = content.splitlines(keepends=True)
        number = int(where * len(lines))
        for part, before, after in (
            (content, b"", b""),
            (lines[number] if lines else b"", b"".join(lines[:number]), b"".join(lines[number + 1 :])),
        ):
            try:
                json.loads(part)
            except (ValueError, RecursionError):
                continue
            end = b"\n" if part.endswith(b"\n") else b""
            return before + change(part.decode(), rng).encode() + end + after
        return _flip(content, where, rng)

    return apply


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """All places of a JSON value: (the list or object, index or key)."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _slots(value[key])


def _other_type(text: str, rng: random.Random) -> str:
    value = json.loads(text)
    places = [*_slots(value)]
    if not places:
        return json.dumps(rng.choice(_JUNK))
    holder, key = rng.choice(places)
    holder[key] = rng.choice(_JUNK)
    return json.dumps(value)


def _lost_key(text: str, rng: random.Random) -> str:
    value = json.loads(text)
    places = [(holder, key) for holder, key in _slots(value) if isinstance(holder, dict)]
    if places:
        holder, key = rng.choice(places)
        del holder[key]
    return json.dumps(value)


def _key_twice(text: str, rng: random.Random) -> str:
    start = text.find("{") + 1
    value = json.loads(text)
    if not start or not isinstance(value, dict) or not value:
        return "{}"
    key = rng.choice(list(value))
    return f"{text[:start]}{json.dumps(key)}: {json.dumps(rng.choice(_JUNK))}, {text[start:]}"


def _another_digit(text: str, rng: random.Random) -> str:
    places = [index for index, letter in enumerate(text) if letter.isdigit()]
    if not places:
        return text
    index = rng.choice(places)
    return text[:index] + rng.choice("0123456789") + text[index + 1 :]


def _not_finite(content: bytes, where: float, rng: random.Random) -> bytes:
    """Put what is no JSON in the place of a number."""
    start = int(where * len(content))
    digits = [index for index in range(start, len(content)) if content[index : index + 1].isdigit()]
    index = digits[0] if digits else start
    return content[:index] + rng.choice(_NOT_JSON) + content[index + 1 :]


CONTENT: dict[str, Callable[[bytes, float, random.Random], bytes]] = {
    "flip": _flip,
    "many flips": _many_flips,
    "overwrite": _overwrite,
    "zeros": _zero_block,
    "cut": lambda content, where, rng: content[: int(where * len(content))],
    "empty": lambda content, where, rng: b"",
    "append": lambda content, where, rng: content + rng.randbytes(rng.randrange(1, 50)),
    "not finite": _not_finite,
    "another type": _in_json(_other_type),
    "a key lost": _in_json(_lost_key),
    "a key twice": _in_json(_key_twice),
    "another digit": _in_json(_another_digit),
}


PLACED: dict[str, Callable[[Path, Path], None]] = {
    "a folder": lambda path, outside: path.mkdir(),
    "a full folder": lambda path, outside: (path.mkdir(), (path / "file").write_text("x"))[0],
    "a link to a file": lambda path, outside: path.symlink_to(outside / "file"),
    "a link to a like file": lambda path, outside: path.symlink_to(outside / "folder" / path.name),
    "a link to a folder": lambda path, outside: path.symlink_to(outside / "folder"),
    "a link to nothing": lambda path, outside: path.symlink_to(outside / "missing"),
    "a link to itself": lambda path, outside: path.symlink_to(path),
    "a pipe": lambda path, outside: os.mkfifo(path),
}


def accidents(*, contents_only: bool = False) -> st.SearchStrategy[Accident]:
    """Draw accidents; `contents_only`: those that leave a file."""
    others = ["delete", "delete its folder", "link its folder", "exchange", *PLACED]
    kinds = [*CONTENT] if contents_only else [*CONTENT, *others]
    part = st.floats(0, 1, exclude_max=True)
    return st.builds(Accident, st.sampled_from(kinds), part, part, st.integers(0, 2**32))


def has_files(folder: Path) -> bool:
    """Whether anything is left below `folder` for an accident to happen to."""
    return any(path.is_file() and not path.is_symlink() for path in folder.rglob("*"))


@contextlib.contextmanager
def copied(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a copy of `folder` and a tree beside it; at the end that must be as it was."""
    with tempfile.TemporaryDirectory(prefix="damaged-", dir=MEMORY) as text:
        place = Path(text).resolve()
        copy = place / "files" / folder.name
        shutil.copytree(folder, copy)
        outside = make_outside(place, folder)
        before = fingerprint(outside)
        yield copy, outside
        assert before.items() <= fingerprint(outside).items()
        assert sorted(path.name for path in place.iterdir()) == ["files", "outside"]
        assert [path.name for path in copy.parent.iterdir()] == [folder.name]


def try_accidents(
    folder: Path, truth: T, holds: Callable[[Path, T, list[Accident], Path], None], num_cases: int
) -> None:
    """Call `holds(copy, truth, accidents, outside)` with a fresh copy of `folder` for each of `num_cases`."""

    @settings(max_examples=num_cases, deadline=None, phases=PHASES)
    @given(happened=st.lists(accidents(), min_size=1, max_size=4))
    def case(happened: list[Accident]) -> None:
        with copied(folder) as (copy, outside):
            holds(copy, truth, happened, outside)

    case()


def make_outside(place: Path, like: Path) -> Path:
    """Make a tree that nothing may touch: a file, and a folder with files named like those below `like`."""
    outside = place / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("sentinel")
    for path in like.rglob("*"):
        if path.is_file():
            (outside / "folder" / path.name).write_bytes(path.read_bytes())
    return outside


def fingerprint(folder: Path) -> dict[str, str]:
    """Digests of everything below `folder`, links by their targets."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }
