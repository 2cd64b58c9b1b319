"""Shards: what is written is read back, by us and by others; the same arguments make the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
import zstandard
from webdataset.writer import TarWriter

from capsdist.data import Split, read_index, verify_split, write_split
from capsdist.data.format.blocks import npy_bytes
from capsdist.errors import DataError
from version_1 import KINDS, write_version_1

SIZES = [(2, 1, 1), (7, 3, 5), (103, 8, 30), (64, 8, 32), (65, 8, 32), (50, 1024, 8192)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num", "block_size", "shard_size"), SIZES)
def test_samples_come_back(make_split, num, block_size, shard_size, kind):
    made = make_split(num, block_size=block_size, shard_size=shard_size, seed=num, kind=kind)
    ids = np.random.default_rng(num).integers(0, num, 3 * num)
    for memory_bytes in (0, 10_000, 1 << 29):  # for no shard, some and all
        split = Split(made.folder, memory_bytes=memory_bytes)
        for _ in range(2):
            images, labels = split.gather(ids)
            assert np.array_equal(images, made.images[ids])
            assert np.array_equal(labels, made.labels[ids])
    assert verify_split(made.folder) == read_index(made.folder) == made.index
    assert (made.index.num_samples, made.index.version) == (num, 1 if kind == "version 1" else 2)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_fields_of_every_type_come_back(tmp_path, compression):
    rng = np.random.default_rng(3)
    images, labels = rng.integers(0, 256, (41, 3, 4, 7), dtype=np.uint8), rng.integers(-1, 5, (41, 3))
    fields = {
        "azimuth": rng.integers(-9, 9, 41).astype(np.int16),
        "box": rng.normal(size=(41, 2, 2)),
        "mask": rng.integers(0, 2, (41, 4, 7)).astype(bool),
        "weight": rng.normal(size=41).astype(np.float32),
    }
    index = write_split(
        tmp_path, images, labels, classes=list("abcde"), fields=fields, compression=compression,
        licence="none", block_size=8, shard_size=20,
    )  # fmt: skip
    assert index == verify_split(tmp_path)
    assert [field.name for field in index.fields] == ["azimuth", "box", "image", "labels", "mask", "weight"]
    for memory_bytes in (0, 1 << 20):
        split, ids = Split(tmp_path, memory_bytes=memory_bytes), rng.permutation(41)
        assert np.array_equal(split.gather(ids)[0], images[ids])
        assert np.array_equal(split.gather(ids)[1], labels[ids])
        found = split.fields(ids, *fields)
        assert all(np.array_equal(found[name], array[ids]) for name, array in fields.items())
        assert all(found[name].dtype == array.dtype for name, array in fields.items())


@pytest.mark.parametrize(("num", "block_size", "shard_size"), SIZES)
def test_stock_webdataset_reads_the_same(make_split, num, block_size, shard_size):
    made = make_split(num, block_size=block_size, shard_size=shard_size)
    urls = [str(made.folder / shard.name) for shard in made.index.shards]
    blocks = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert np.array_equal(np.concatenate([block["image.npy"] for block in blocks]), made.images)
    assert np.array_equal(np.concatenate([block["label.npy"] for block in blocks]), made.labels)
    assert (
        len({block["__key__"] for block in blocks})
        == len(blocks)
        == sum(len(s.blocks) for s in made.index.shards)
    )


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_specification_is_enough_to_read_it(make_split, compression):
    """A reader that uses json, numpy, zstd and the sizes only."""
    made = make_split(kind=compression)
    document = json.loads((made.folder / "index.json").read_text())
    found: dict[str, list[np.ndarray]] = {"image": [], "label": []}
    for shard in document["shards"]:
        data, end = (made.folder / shard["name"]).read_bytes(), 0
        for block in shard["blocks"]:
            num, begin = block["num_samples"], end
            for number, field in enumerate(document["fields"]):
                dtype, shape = np.dtype(field["dtype"]), (num, *field["shape"])
                array_bytes = dtype.itemsize * int(np.prod(shape))
                size = block["stored_bytes"][number] if compression == "zstd" else 512 + array_bytes
                member, end = data[end + 512 : end + 512 + size], end + 512 + -(-size // 512) * 512
                content = zstandard.decompress(member) if compression == "zstd" else member
                found[field["name"]].append(np.frombuffer(content, dtype, offset=512).reshape(shape))
            assert xxhash.xxh3_128_hexdigest(data[begin:end]) == block["xxh3_128"]
    assert np.array_equal(np.concatenate(found["image"]), made.images)
    assert np.array_equal(np.concatenate(found["label"]), made.labels)
    digest = document.pop("digest")
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert digest == hashlib.sha256(canonical.encode("ascii")).hexdigest() == made.index.digest


@pytest.mark.skipif(shutil.which("tar") is None, reason="this system has no tar command")
def test_the_tar_command_and_numpy_read_it(make_split, tmp_path):
    made = make_split(20)
    subprocess.run(["tar", "-xf", made.folder / "shard-00000.tar", "-C", tmp_path], check=True)
    assert np.array_equal(np.load(tmp_path / "00000000000.image.npy"), made.images[:8])
    assert np.array_equal(np.load(tmp_path / "00000000002.label.npy"), made.labels[16:20])


def plain_headers(data: bytes) -> bool:
    """Property: every header is plain USTAR with time 0, and members start on 512 bytes right behind it."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    magic = all(data[m.offset_data - 512 :][257:263] == b"ustar\0" for m in members)
    direct = all(m.offset_data - m.offset == 512 and m.offset % 512 == 0 for m in members)
    return magic and direct and all(m.mtime == 0 and not m.pax_headers for m in members)


def test_headers_are_plain_ustar(make_split):
    made = make_split()
    assert all(plain_headers((made.folder / shard.name).read_bytes()) for shard in made.index.shards)


def test_mutant_default_time_is_not_plain():
    stream = io.BytesIO()
    with TarWriter(stream, encoder=False) as writer:
        writer.write({"__key__": "000000", "x.npy": npy_bytes(np.zeros(3, np.uint8))})
    assert not plain_headers(stream.getvalue())


@pytest.mark.parametrize("array", [np.arange(7, dtype="<i8"), np.zeros((3, 2, 5, 1), np.uint8)])
def test_npy_is_numpys_own_format(array):
    data = npy_bytes(array)
    assert np.array_equal(np.load(io.BytesIO(data), allow_pickle=False), array)
    assert len(data) == 512 + array.nbytes


def test_the_format_does_not_drift(tmp_path):
    """Golden digest: a changed format must get a new version number, or old sets change their name."""
    images, labels = (np.arange(20 * 12) % 251).astype(np.uint8).reshape(20, 1, 3, 4), np.arange(20) % 3
    index = write_split(tmp_path / "2", images, labels, classes=list("abc"), block_size=4, shard_size=8)
    assert index.shards[0].xxh3_128 == "ebbbb74d5324374d8f053811f498c635"
    assert index.digest == "84c52e6817546d7032944a825bfbc1960c391a917251568cf30c43d874495d6b"
    write_version_1(tmp_path / "1", images, labels, list("abc"), block_size=4, shard_size=8)
    earlier = read_index(tmp_path / "1")
    assert earlier.shards[0].xxh3_128 == "499d96fd6b2b62f35c695bec22ed176d"
    assert earlier.digest == "e2a11517050d6144953ef68986d566de32cfe2e45a5dc7797473364137f19947"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            np.zeros((2, 1, 3, 3), np.float32),
            np.zeros(2, np.int64),
            r"images are float32 \[2, 1, 3, 3\]; give uint8",
        ),
        (
            np.zeros((2, 3, 3), np.uint8),
            np.zeros(2, np.int64),
            r"images are uint8 \[2, 3, 3\]; give uint8 \[N,C,H,W\]",
        ),
        (np.zeros((0, 1, 3, 3), np.uint8), np.zeros(0, np.int64), "with N >= 1"),
        (
            np.zeros((2, 1, 3, 3), np.uint8),
            np.zeros(2, np.int32),
            r"labels are int32 \[2\]; give int64 \[2\]",
        ),
        (
            np.zeros((2, 1, 3, 3), np.uint8),
            np.zeros(3, np.int64),
            r"labels are int64 \[3\]; give int64 \[2\]",
        ),
        ([[[[0]]]], np.zeros(1, np.int64), "images are a list; give a numpy array"),
        (np.zeros((1, 1, 3, 3), np.uint8), [0], "labels are a list; give a numpy array"),
        (
            np.broadcast_to(np.uint8(0), (2, 1, 1, 70_000)),
            np.zeros(2, np.int64),
            r"image_shape=\[1, 1, 70000\]: each of C, H, W may be 1 to 65,536",
        ),
        (np.zeros((2, 1, 3, 3), np.uint8), np.array([0, 3]), r"label 3 of sample 1 is outside 0\.\.2"),
        (np.zeros((2, 1, 3, 3), np.uint8), np.array([-1, 0]), r"label -1 of sample 0 is outside 0\.\.2"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, images, labels, message):
    with pytest.raises(DataError, match=message):
        write_split(tmp_path / "new", images, labels, classes=list("abc"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["block_size", "shard_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", 1 << 40])
def test_wrong_sizes_are_refused(tmp_path, name, value):
    images, labels = np.zeros((2, 1, 3, 3), np.uint8), np.zeros(2, np.int64)
    message = f"{name}={value!r}: is not a number of images; give 1 to 2,147,483,648"
    with pytest.raises(DataError, match=message):
        write_split(tmp_path / "new", images, labels, classes=["a"], **{name: value})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("make", [str, Path, lambda path: f"file://{path}"])
def test_paths_of_every_kind(make_split, make):
    made = make_split()
    assert read_index(make(made.folder)) == made.index


def test_other_protocols_are_refused():
    with pytest.raises(
        DataError, match="gs://bucket/set: gs:// is not supported; give an s3:// URL or a local"
    ):
        read_index("gs://bucket/set")


def test_a_url_that_pathlib_has_damaged_is_refused():
    with pytest.raises(
        DataError, match="s3:/bucket/set: lost a slash in pathlib; hand s3:// URLs over as text"
    ):
        read_index(Path("s3://bucket/set"))


def test_a_compressed_shard_that_could_not_be_unpacked_is_not_written(tmp_path):
    images = np.broadcast_to(np.uint8(0), (1100, 1, 1024, 1024))  # in no memory
    message = (
        r"1,100 samples have 1,153,442,\d+ bytes, a compressed shard 1,073,741,824 at most; lower shard_"
    )
    with pytest.raises(DataError, match=message):
        write_split(
            tmp_path, images, np.zeros(1100, np.int64), classes=["a"], compression="zstd", shard_size=1100
        )
