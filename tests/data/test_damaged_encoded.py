"""Splits of encoded images damaged or forged at random: read rightly, or refused in one line."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capsdist.data import check_split, verify_split
from capsdist.data.encoded.register import index_tars
from capsdist.data.encoded.split import EncodedSplit
from capsdist.data.encoded.table import packed_table, read_table
from capsdist.data.encoded.write import table_of
from capsdist.data.format.fields import Field
from capsdist.data.format.packed import index_digest
from capsdist.errors import DataError
from encoded_images import Images, write
from limits import within

CASES = [100, pytest.param(3000, marks=pytest.mark.slow)]
NUM = 12
IMAGES = Images(NUM)
SIZE = (7, 6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoded") / "set"
    write(folder, IMAGES)
    return folder


def many(num_cases: int, case: Callable[[st.DataObject], None]) -> None:
    """Call `case` with `num_cases` draws."""

    @settings(max_examples=num_cases, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def every(data: st.DataObject) -> None:
        with within(60):
            case(data)

    every()


def check_one_line(error: DataError) -> None:
    assert str(error)
    assert len(str(error).splitlines()) == 1


def read_rightly_or_refused(folder: Path) -> None:
    """All samples as they were packed, or an error of one line."""
    for work in (check_split, verify_split):
        try:
            work(folder)
        except DataError as error:
            check_one_line(error)
    out = {"image": np.empty((NUM, 3, *SIZE), np.uint8), "label": np.empty(NUM, np.int64)}
    try:
        split = EncodedSplit(folder, size=SIZE, num_threads=2)
        if split.index.num_samples != NUM:
            raise DataError("another index")
        split.gather_into(np.arange(NUM), out)
    except DataError as error:
        check_one_line(error)
        return
    assert np.array_equal(out["image"], IMAGES.decoded(np.arange(NUM), (3, *SIZE)))
    assert out["label"].tolist() == [number % 5 for number in range(NUM)]


@pytest.mark.parametrize("num_cases", CASES)
def test_files_with_wrong_bytes(whole, num_cases):
    many(num_cases, lambda data: read_wrong_bytes(whole, data))


def read_wrong_bytes(whole: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        shutil.copytree(whole, folder)
        names = sorted(path.name for path in folder.glob("[ist]*"))
        path = folder / data.draw(st.sampled_from(names))
        content = bytearray(path.read_bytes())
        start = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["cut", "change", "insert", "remove"]))
        if kind == "cut":
            del content[start:]
        elif kind == "change":
            content[start : start + 3] = data.draw(st.binary(min_size=1, max_size=3))
        elif kind == "insert":
            content[start:start] = data.draw(st.binary(min_size=1, max_size=600))
        path.write_bytes(content)
        if kind == "remove":
            path.unlink()
        read_rightly_or_refused(folder)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))][0 if path else 1 :]


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 1 << 63), st.floats(), st.text(max_size=12),
    st.sampled_from(["../x.tar", "/etc/passwd", "shard-00001.tar", "s3://", "x.tar", [], {}, [1, 2]]),
)  # fmt: skip


@pytest.mark.parametrize("num_cases", CASES)
def test_forged_indexes_with_a_right_digest(whole, num_cases):
    many(num_cases, lambda data: read_forged_index(whole, data))


def read_forged_index(whole: Path, data: st.DataObject) -> None:
    document = json.loads((whole / "index.json").read_text())
    document.pop("digest")
    forged = copy.deepcopy(document)
    path = data.draw(st.sampled_from(places(forged)))
    holder = forged
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(VALUES)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        shutil.copytree(whole, folder)
        (folder / "index.json").write_text(json.dumps({"digest": index_digest(forged), **forged}))
        if "classes" in path or "label" in str(path):
            return  # other names are another set
        read_rightly_or_refused(folder)


@pytest.mark.parametrize("num_cases", CASES)
def test_damaged_tar_files_are_indexed_rightly_or_refused(whole, num_cases):
    many(num_cases, lambda data: index_damaged_tar(whole, data))


def index_damaged_tar(whole: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "tars"
        folder.mkdir()
        content = bytearray((whole / "shard-00000.tar").read_bytes())
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + 8] = data.draw(st.binary(min_size=1, max_size=8))
        (folder / "a.tar").write_bytes(content)
        try:
            index = index_tars(str(folder), warn=lambda text: None)
            check_split(folder)
            assert index.num_samples <= NUM
        except DataError as error:
            check_one_line(error)


@pytest.mark.parametrize("size_bytes", [1 << 31, 3 << 30, 1 << 40])
def test_tables_of_large_tar_files_are_read(size_bytes):
    """Places in a file above 2 GiB once overflowed the 4 bytes of the size of an image."""
    fields = (Field("label", "<i8"),)
    table = table_of([(size_bytes - 900, 900, 5)], [{"label": 1}], fields)
    assert read_table(packed_table(table), fields, 1, size_bytes) == table
    with pytest.raises(DataError, match="has sample 0 outside its tar file"):
        read_table(packed_table(table), fields, 1, size_bytes - 1)


def test_fields_too_large_for_a_row_are_refused(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    document = json.loads((folder / "index.json").read_text())
    document.pop("digest")
    document["fields"] = [{"name": name, "dtype": "<f8", "shape": [1 << 16, 2048]} for name in "abc"]
    document["fields"].append({"name": "label", "dtype": "<i8", "shape": []})
    (folder / "index.json").write_text(json.dumps({"digest": index_digest(document), **document}))
    with pytest.raises(DataError, match=r"fields have 3,221,225,480 bytes a sample, at most 1,073,741,824"):
        check_split(folder)
