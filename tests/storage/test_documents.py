"""The reader of JSON files: what it accepts, and that everything else is one error."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from capsdist.errors import DocumentError
from capsdist.storage.documents import dump_json, parse_document, parse_json, parse_lines, read_file, seal


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    step: Annotated[int, Field(ge=0)]
    loss: float = 0.0
    shape: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff{}", "is not UTF-8 at byte 0"),
        (b'\xef\xbb\xbf{"a": 1}', "is not JSON"),
        (b'{"a": ', "is not JSON (line 1"),
        (b'{"a": 1, "a": 2}', "has the key 'a' twice"),
        (b'{"a": NaN}', "has the number NaN"),
        (b'{"a": -Infinity}', "has the number -Infinity"),
        (b'{"a": 1e999}', "has the number 1e999"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"9" * 5000, "is not JSON (Exceeds the limit"),
        (b"[" + b"1," * 600 + b"1]", "is larger than 1,000 bytes"),
    ],
)
def test_what_is_no_document_is_one_error(content: bytes, reason: str) -> None:
    limit = 1_000 if "larger" in reason else 1 << 20
    with pytest.raises(DocumentError) as caught:
        parse_json(content, max_bytes=limit)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"3", "holds 3 instead of an object"),
        (b"null", "holds null instead of an object"),
        (b"[]", "document=[]"),
        (b"{}", "step is missing"),
        (b'{"step": "3"}', "step='3': input should be a valid integer"),
        (b'{"step": true}', "step=True: input should be a valid integer"),
        (b'{"step": 3.0}', "step=3.0"),
        (b'{"step": -1}', "step=-1: input should be greater than or equal to 0"),
        (b'{"step": 1, "other": 2}', "other is not a field of this version"),
        (b'{"step": 1, "a\\nb": 2}', "a\\nb is not a field of this version"),
        (b'{"step": 1, "shape": [1, "2"]}', "shape.1='2'"),
        (b'{"step": "x", "loss": "y"}', "step='x': input should be a valid integer; loss='y'"),
    ],
)
def test_values_of_another_shape_are_named(content: bytes, reason: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_document(content, Row)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_document_that_was_written_is_read() -> None:
    row = Row(step=3, loss=0.1, shape=(1, 2))
    assert parse_document(dump_json(row.model_dump()), Row) == row
    with pytest.raises(ValueError, match="JSON"):
        dump_json({"loss": float("nan")})


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates too


@given(st.dictionaries(ANY_TEXT.map("=".__add__), ANY_TEXT | st.lists(ANY_TEXT), max_size=3))
def test_any_text_that_was_written_is_read(values: dict[str, str | list[str]]) -> None:
    """A file name may hold a byte that is not UTF-8; its message must not make a document unreadable."""
    plain = parse_json(dump_json(values))
    for written in (dump_json(values), dump_json(seal(values))):
        found = parse_document(written, dict[str, str | list[str]])
        assert {name: found[name] for name in plain} == plain
    assert parse_document(dump_json({"path": "/caf\udce9/é"}), dict[str, str]) == {"path": "/caf\\udce9/é"}


def test_damaged_lines_are_told_and_the_cut_last_one_is_left_out() -> None:
    told: list[int] = []
    rows = parse_lines(b'{"step": 1}\n{"ste\n\n{"step": 2}\n{"step": 3', Row, lambda n, error: told.append(n))
    assert [row.step for row in rows] == [1, 2]
    assert told == [2, 3]


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_sealed_object_with_a_flipped_bit_is_refused_or_the_same(step: int, where: float, bit: int) -> None:
    content = bytearray(dump_json(seal({"step": step, "loss": 0.5, "shape": [3, 4]})))
    assert parse_document(bytes(content), Row) == Row(step=step, loss=0.5, shape=(3, 4))
    content[int(where * len(content))] ^= 1 << bit
    with contextlib.suppress(DocumentError):
        assert parse_document(bytes(content), Row) == Row(step=step, loss=0.5, shape=(3, 4))


def test_an_object_with_a_wrong_checksum_is_refused() -> None:
    content = dump_json(seal({"step": 4}))
    with pytest.raises(DocumentError, match=r"^was changed: its checksum is another$"):
        parse_document(content.replace(b"4", b"5", 1), Row)
    with pytest.raises(DocumentError, match=r"^crc is not a field of this version$"):
        parse_document(content.replace(b"crc32", b"crc"), Row)
    assert parse_document(b'{"step": 4}', Row).step == 4  # as version 0.1 wrote it


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_other_exception_comes_out(content: bytes) -> None:
    for shape in (Row, dict[str, float], list[Row]):
        with contextlib.suppress(DocumentError):
            parse_document(content, shape)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 11)
    for name, reason in (("", "regular"), ("pipe", "regular"), ("large", "larger than 10 bytes")):
        with pytest.raises(DocumentError, match=reason):
            read_file(tmp_path / name, max_bytes=10)
    for name in ("missing", "large/below"):
        with pytest.raises(FileNotFoundError):
            read_file(tmp_path / name)
    assert read_file(tmp_path / "large", max_bytes=11) == b"x" * 11
