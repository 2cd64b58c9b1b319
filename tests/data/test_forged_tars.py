"""Foreign tar files of any headers and members: indexed, or refused in one line; nothing else is touched.

Headers have right checksums, so that what they state is believed: links, devices, absolute names, sizes that
are negative or huge, extended headers of every kind. Some are damaged besides, as in properties/damage.py.
"""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from bombs import header, pax, png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capsdist.data import check_split, verify_split
from capsdist.data.encoded.register import index_tars
from capsdist.data.format.packed import TABLE_NAME
from capsdist.errors import DataError
from encoded_images import image_file
from limits import within
from properties.damage import CONTENT, MEMORY, PHASES, damaged, fingerprint, make_outside

CASES = [400, pytest.param(10_000, marks=pytest.mark.slow)]
GOOD = image_file(np.random.default_rng(0), (8, 6), "png")
NAMES = [
    "a.png", "a.cls", "a.json", "b.jpg", "b.txt", "some/c.png", "some/c.cls", "../../outside/file.png",
    "/etc/passwd.cls", "../../outside/folder/index.json", "a\nb.png", "a\nb.cls", ".png", "é.cls", "",
]  # fmt: skip
KINDS = [
    tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
    tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
    tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, b"Z",
]  # fmt: skip
DATA = {
    "image": GOOD, "cut image": GOOD[:60], "bomb": png(60_000, 60_000, b""), "0": b"0", "3": b"3",
    "-1": b"-1", "digits": b"9" * 5000, "name": b"cat", "two lines": b"a\nb", "no text": b"\xff",
    "nothing": b"", "json number": b'{"label": 2}', "json name": b'{"label": "dog"}',
    "json list": b'{"label": [1]}', "nested": b"[" * 5000, "NaN": b"NaN", "long name": b"x" * 3000,
}  # fmt: skip
KEYS = [
    "size", "path", "linkpath", "hdrcharset", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major",
    "GNU.sparse.minor", "GNU.sparse.realsize", "GNU.sparse.name", "comment",
]  # fmt: skip
VALUES = [
    "0", "1", "-1", "-512", "-1536", "9" * 30, "1e9", "nan", "x", "1,2", "1,x", "../../outside/file", "a.png",
    "\x80", "BINARY",
]  # fmt: skip
SIZES = [-1, -1024, 1, 511, 513, 1 << 21, 1 << 33, 1 << 62]


def member(name: str, kind: bytes, data: bytes, size: int | None = None) -> bytes:
    """A member with a header that may state another size."""
    padded = data.ljust(-(-len(data) // 512) * 512, b"\0")
    return header(name, len(data) if size is None else size, kind) + padded


GOOD_SAMPLE = member("z.png", tarfile.REGTYPE, GOOD) + member("z.cls", tarfile.REGTYPE, b"3")


@dataclass(frozen=True)
class Part:
    """A part of a tar file: a good sample, an extended header (`values`), or a member as stated."""

    what: Literal["good", "plain", "extended", "forged"]
    name: str
    kind: bytes
    data: str
    size: int | None
    values: dict[str, str]

    def content(self) -> bytes:
        """The bytes of the part."""
        match self.what:
            case "good":
                return GOOD_SAMPLE
            case "extended":
                return pax(**self.values)
            case "plain":
                return member(self.name, tarfile.REGTYPE, DATA[self.data])
            case "forged":
                return member(self.name, self.kind, DATA[self.data], self.size)


PARTS = st.builds(
    Part,
    what=st.sampled_from(["good", "plain", "extended", "forged"]),
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(KINDS),
    data=st.sampled_from(list(DATA)),
    size=st.none() | st.sampled_from(SIZES),
    values=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=3),
)
DAMAGE = st.tuples(st.sampled_from(list(CONTENT)), st.floats(0, 1, exclude_max=True), st.integers(0, 2**32))


def check_tar(content: bytes, root: Path) -> None:
    """Index a tar file and read what was found."""
    tars, to = root / "tars", root / "data/mine"
    tars.mkdir()
    (tars / "a.tar").write_bytes(content)
    outside = make_outside(root, tars)
    before, told = (fingerprint(outside), fingerprint(tars)), []
    with within(60):
        try:
            index = index_tars(str(tars), str(to), warn=told.append)
            check_split(to)
            assert verify_split(to, decode_size=8).digest == index.digest
        except DataError as error:
            told.append(str(error))
    assert all(text and len(text.splitlines()) == 1 for text in told), told
    assert (fingerprint(outside), fingerprint(tars)) == before
    assert {path.name for path in root.iterdir()} <= {"tars", "data", "outside"}
    names = [path.name for path in root.glob("data/**/*") if path.is_file()]
    assert all(name == "index.json" or re.fullmatch(TABLE_NAME, name) for name in names), names


@pytest.mark.parametrize("num_cases", CASES)
def test_a_forged_tar_file_is_indexed_or_refused(num_cases):
    @settings(max_examples=num_cases, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck))
    @given(
        parts=st.lists(PARTS, min_size=1, max_size=8),
        num_end=st.sampled_from([0, 512, 1024]),
        damage=st.none() | DAMAGE,
    )
    def every(parts: list[Part], num_end: int, damage: tuple[str, float, int] | None) -> None:
        content = b"".join(part.content() for part in parts) + bytes(num_end)
        with tempfile.TemporaryDirectory(prefix="forged-", dir=MEMORY) as place:
            check_tar(damaged(content, *damage) if damage else content, Path(place))

    every()


@pytest.mark.parametrize(
    "forged",
    [
        pax(size="-1024"),
        pax(path="../../outside/file.png"),
        pax(comment="x") * 400,
        member("/etc/passwd.png", tarfile.SYMTYPE, b""),
        member("../../outside/file.png", tarfile.LNKTYPE, b""),
        member("readme.md", tarfile.REGTYPE, b"text", -1536),
        member("x", tarfile.XHDTYPE, b"text", 1 << 33),
    ],
    ids=lambda content: content[:9].strip(b"\0").decode(),
)
@pytest.mark.parametrize("first", [False, True])
def test_what_once_led_astray(tmp_path, forged, first):
    """Negative sizes lead back to the same header, and 400 nested ones are too deep for tarfile."""
    parts = [forged, GOOD_SAMPLE] if first else [GOOD_SAMPLE, forged]
    check_tar(b"".join(parts) + bytes(1024), tmp_path)


def test_images_with_one_name_are_counted_not_kept(tmp_path):
    content = member("a.png", tarfile.REGTYPE, GOOD) * 3 + GOOD_SAMPLE + bytes(1024)
    (tmp_path / "a.tar").write_bytes(content)
    told: list[str] = []
    assert index_tars(str(tmp_path), warn=told.append).num_samples == 1
    assert ["'a' has 3 images" in text for text in told] == [True]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_read(tmp_path, make):
    """A pipe and a device would be read for ever; folders are passed over."""
    (tmp_path / "a.tar").write_bytes(GOOD_SAMPLE + bytes(1024))
    make(tmp_path / "b.tar")
    with within(60):
        if (tmp_path / "b.tar").is_dir():
            assert index_tars(str(tmp_path)).num_samples == 1
        else:
            with pytest.raises(DataError, match=r"b\.tar: is not a regular file; get the file again"):
                index_tars(str(tmp_path))
