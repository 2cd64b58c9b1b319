"""Data sets damaged or forged at random: read rightly, or refused in one line; never a traceback."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capsdist.data import Split, check_split, read_index, verify_split, write_split
from capsdist.errors import DataError
from version_1 import KINDS, write_version_1

FEW = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
NUM = 70


def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (NUM, 2, 5, 3), dtype=np.uint8), np.arange(NUM) % 7


def written(kind: str, folder: Path) -> Path:
    images, labels = images_and_labels()
    sizes = {"block_size": 8, "shard_size": 30}
    if kind == "version 1":
        write_version_1(folder, images, labels, list("abcdefg"), **sizes)
    else:
        write_split(folder, images, labels, classes=list("abcdefg"), compression=kind, **sizes)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split that is not changed."""
    return written(request.param, tmp_path_factory.mktemp("damage") / "train")


@pytest.fixture(scope="module")
def own(whole: Path) -> Path:
    """A copy of it to be damaged; each test writes all of its files anew."""
    return Path(shutil.copytree(whole, whole.parent / "own"))


def sealed(document: dict[str, Any]) -> bytes:
    """The index that `document` says, with a digest that fits it."""
    values = {name: value for name, value in document.items() if name != "digest"}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return json.dumps({**values, "digest": hashlib.sha256(canonical.encode()).hexdigest()}).encode()


def right_or_refused(folder: Path) -> bool:
    """Whether the split is read; then it must be what was written, else each reader ends with one line."""
    images, labels = images_and_labels()
    results = []
    for read in (lambda: Split(folder).gather(np.arange(NUM)), lambda: verify_split(folder)):
        found, message = outcome(read)
        assert "\n" not in message
        assert found is not None or str(folder) in message
        if isinstance(found, tuple):
            assert np.array_equal(found[0], images)
            assert np.array_equal(found[1], labels)
        results.append(found is not None)
    return all(results)


def outcome(read: Callable[[], Any]) -> tuple[Any, str]:
    """What `read` returns, or the message of its error."""
    try:
        return read(), ""
    except DataError as error:
        return None, str(error)


def refused(folder: Path, *parts: str) -> None:
    for read in (read_index, check_split, verify_split, lambda folder: Split(folder)):
        with pytest.raises(DataError) as caught:
            read(folder)
        assert "\n" not in str(caught.value)
        assert all(part in str(caught.value) for part in (str(folder), *parts)), caught.value


# ---- forged indexes: their digest fits


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set what `path` names, keys and numbers of list items joined by dots."""

    def apply(document: dict[str, Any]) -> None:
        *parts, last = (int(part) if part.isdecimal() else part for part in path.split("."))
        place: Any = document
        for part in parts:
            place = place[part]
        place[last] = value

    return apply


FORGED = [
    ("block_size", 32, "are not those of"),
    ("block_size", 0, "block_size=0"),
    ("block_size", True, "block_size=True"),
    ("block_size", "8", "block_size='8'"),
    ("block_size", 1e30, "block_size=1e+30"),
    ("num_samples", 71, "num_samples=71, but its shards hold 70"),
    ("num_samples", 10**30, "num_samples="),
    ("classes", [], "classes is empty"),
    ("classes", ["a", "b", "a"], "classes[2]='a' is also classes[0]"),
    ("classes", "abcdefg", "classes='abcdefg'"),
    ("classes", ["a", 3], "classes.1=3"),
    ("shards", [], "shards"),
    ("shards", None, "shards=None"),
    ("shards.0.name", "/etc/passwd", "shards.0.name='/etc/passwd'"),
    ("shards.0.name", "../own/shard-00000.tar", "shards.0.name="),
    ("shards.0.name", "shard-00000.tar\n", "shards.0.name="),
    ("shards.0.name", "shard-٠٠٠٠٠.tar", "shards.0.name="),
    ("shards.1.name", "shard-00000.tar", "names shard-00000.tar twice"),
    ("shards.0.sha256", "ab", "shards.0.sha256='ab'"),
    ("shards.0.xxh3_128", "AB" * 16, "shards.0.xxh3_128"),
    ("shards.0.num_samples", 10**18, "shards.0.num_samples"),
    ("shards.0.num_samples", 10**12, ""),
    ("shards.0.size_bytes", 30720 + 10240, "are not those of"),
    ("shards.0.size_bytes", -1, "shards.0.size_bytes=-1"),
    ("shards.0.blocks", [], "are not those of"),
    ("shards.0.blocks.0.num_samples", 7, "are not those of"),
    ("shards.0.more", 1, "shards.0.more=1: unexpected"),
    ("more", 1, "more is not a field"),
]
FORGED_1 = [
    ("image_shape", [2, 5, 40], "are not those of"),
    ("image_shape", [2, 15], "image_shape"),
    ("image_shape", [0, 5, 3], "image_shape.0=0"),
    ("image_shape", [65536, 65536, 65536], "image_shape=[65536, 65536, 65536]"),
    ("image_dtype", "<f4", "image_dtype='<f4'"),
    ("shards.0.blocks.0.images_offset_bytes", 1040, "are not those of"),
    ("shards.0.blocks.0.images_offset_bytes", -1024, "images_offset_bytes=-1024"),
    ("shards.0.blocks.1.images_offset_bytes", 1024, "are not those of"),
]
FORGED_2 = [
    ("fields.0.shape", [2, 15], "field image is uint8 [2, 15]"),
    ("fields.0.shape", [0, 5, 3], "fields.0.shape.0=0"),
    ("fields.0.shape", [65536, 65536, 65536], "image_shape=[65536, 65536, 65536]"),
    ("fields.0.dtype", "<f4", "field image is float32"),
    ("fields.0.dtype", "|O", "fields.0.dtype='|O'"),
    ("fields.0.name", "../label", "fields.0.name='../label'"),
    ("fields.1.name", "image", "have a name twice"),
    ("fields.1.name", "aaa", "give one of label and labels"),
    ("fields.1.dtype", "<i4", "field label is int32"),
    ("fields.1.shape", [3], "field label is int64 [3]"),
    ("fields", [], "fields"),
    ("compression", "gzip", "compression='gzip'"),
    ("licence", None, "licence=None"),
    ("shards.0.blocks.0.xxh3_128", "", "are not those of"),
    ("shards.0.blocks.0.xxh3_128", "é" * 32, "shards.0.blocks.0.xxh3_128"),
    ("shards.0.blocks.0.stored_bytes", [0, 9], "shards.0.blocks.0.stored_bytes.0=0"),
    ("shards.0.blocks.0.stored_bytes", [10**15, 9], "are not those of"),
]


@pytest.mark.parametrize(("path", "value", "message"), FORGED, ids=lambda value: str(value)[:30])
def test_a_forged_index_is_refused_although_its_digest_fits(whole, own, path, value, message):
    forged(whole, own, path, value, message)


@pytest.mark.parametrize(("path", "value", "message"), FORGED_1, ids=lambda value: str(value)[:30])
def test_a_forged_index_of_version_1_is_refused(tmp_path, path, value, message):
    whole = written("version 1", tmp_path / "whole")
    forged(whole, Path(shutil.copytree(whole, tmp_path / "own")), path, value, message)


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize(("path", "value", "message"), FORGED_2, ids=lambda value: str(value)[:30])
def test_a_forged_index_of_version_2_is_refused(tmp_path, path, value, message, compression):
    whole = written(compression, tmp_path / "whole")
    forged(whole, Path(shutil.copytree(whole, tmp_path / "own")), path, value, message)


def forged(whole: Path, own: Path, path: str, value: Any, message: str) -> None:
    document = json.loads((whole / "index.json").read_text())
    change(path, value)(document)
    (own / "index.json").write_bytes(sealed(document))
    refused(own, "index.json: ", message)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_of_as_many_bytes_is_refused_by_the_shards(tmp_path, kind):
    own = written(kind, tmp_path / "own")
    document = json.loads((own / "index.json").read_text())
    change("image_shape" if kind == "version 1" else "fields.0.shape", [2, 3, 5])(document)
    (own / "index.json").write_bytes(sealed(document))
    place = "" if kind == "zstd" else " at byte 1024"
    message = rf"shard-00000\.tar: holds no uint8 array of shape \[8, 2, 3, 5\]{place}, as its index says"
    for read in (verify_split, check_split, lambda folder: Split(folder).gather(np.arange(3))):
        with pytest.raises(DataError, match=message):
            read(own)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_field_without_its_shape_is_refused(tmp_path, compression):
    """Read as a number, it would give the same data set another digest."""
    own = written(compression, tmp_path / "own")
    document = json.loads((own / "index.json").read_text())
    del document["fields"][1]["shape"]
    (own / "index.json").write_bytes(sealed(document))
    refused(own, "index.json: ", "fields.1.shape")


def test_a_tar_header_that_disagrees_is_found_by_verify(tmp_path):
    """A member that was renamed, its shard sealed again: training reads it, other programs do not."""
    images, labels = images_and_labels()
    index = write_split(tmp_path, images, labels, classes=list("abcdefg"))
    path = tmp_path / index.shards[0].name
    content = bytearray(path.read_bytes())
    assert content[:21] == b"00000000000.image.npy"
    content[10:11] = b"7"
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    path.write_bytes(content)
    document = json.loads((tmp_path / "index.json").read_text())
    document["shards"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    document["shards"][0]["xxh3_128"] = xxhash.xxh3_128_hexdigest(content)
    block = content[: index.spans(0)[0].end]
    document["shards"][0]["blocks"][0]["xxh3_128"] = xxhash.xxh3_128_hexdigest(block)
    (tmp_path / "index.json").write_bytes(sealed(document))
    check_split(tmp_path)
    with pytest.raises(
        DataError, match=r"shard-00000\.tar: has label\.npy with .* beside member 1 where .* beside member 0"
    ):
        verify_split(tmp_path)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    found = [(*path, key) for key, _ in items]
    for key, item in items:
        if isinstance(item, dict | list):
            found += places(item, (*path, key))
    return found


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@FEW
@given(data=st.data())
def test_an_index_with_values_of_any_kind(whole, own, data):
    """Values replaced, doubled or removed anywhere; the digest fits, or not."""
    document = json.loads((whole / "index.json").read_text())
    original = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(places(document)))
        place = document
        for key in parents:
            place = place[key]
        match data.draw(st.sampled_from(["value", "shift", "remove", "double"])):
            case "value":
                place[last] = data.draw(VALUES)
            case "shift" if isinstance(place[last], int):
                place[last] += data.draw(st.sampled_from([-512, -8, -1, 1, 8, 512, 10240]))
            case "double" if isinstance(place, list):
                place.append(place[last])
            case _:
                del place[last]
    content = sealed(document) if data.draw(st.booleans()) else json.dumps(document).encode()
    (own / "index.json").write_bytes(content)
    if right_or_refused(own):
        names = {name for name in document if document[name] != original.get(name)}
        assert names <= {"classes", "digest", "licence"}, names


@FEW
@given(data=st.data())
def test_files_with_flipped_and_lost_bytes(whole, own, data):
    paths = sorted(whole.iterdir())
    for path in paths:
        shutil.copyfile(path, own / path.name)
    path = data.draw(st.sampled_from(paths))
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "insert", "zero"])):
        case "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case "insert":
            place = data.draw(st.integers(0, len(content)))
            content[place:place] = data.draw(st.binary(min_size=1, max_size=4))
        case "zero":
            place = data.draw(st.integers(0, len(content) - 1))
            content[place : place + 512] = bytes(len(content[place : place + 512]))
    (own / path.name).write_bytes(content)
    if right_or_refused(own) and path.name != "index.json":
        assert bytes(content) == path.read_bytes()
    shutil.copyfile(path, own / path.name)


@pytest.mark.parametrize("content", [b"", b"null", b"\xff" * 9, b"[" * 9999, b"1" * 9999, b'{"a":NaN}'])
def test_an_index_that_is_none(own, content):
    (own / "index.json").write_bytes(content)
    refused(own, "index.json: ")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_shard_that_is_no_file(whole, tmp_path, make):
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    (folder / "shard-00001.tar").unlink()
    make(folder / "shard-00001.tar")
    for read in (check_split, verify_split, lambda folder: Split(folder).gather(np.arange(NUM))):
        with pytest.raises(
            DataError, match=r"shard-00001\.tar: (has 0 bytes instead of|cannot be read \(Is a d)"
        ):
            read(folder)


def test_an_index_that_is_a_folder(own):
    (own / "index.json").unlink()
    (own / "index.json").mkdir()
    refused(own, "index.json: is not a regular file")
    (own / "index.json").rmdir()
