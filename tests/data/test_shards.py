"""Shards: what is written is read back, by us and by others; the same arguments make the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
import zstandard
from version_1 import KINDS, write_version_1
from webdataset.writer import TarWriter

from capsdist.data import Split, read_index, verify_split, write_split
from capsdist.data.format.blocks import npy_bytes
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.samples import ArraySamples
from capsdist.data.format.shards import write_samples
from capsdist.errors import DataError
from capsdist.storage.temporary import temporary_folder

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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_arguments_make_equal_bytes(make_split):
    first, second = make_split(name="a"), make_split(name="b")
    assert contents(first.folder) == contents(second.folder)
    other = make_split(name="c", seed=1)
    assert other.index.digest != first.index.digest


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


def age(folder: Path) -> None:
    """Give every shard a modification time of long ago, so that a rewritten one shows."""
    for path in folder.glob("*.tar"):
        os.utime(path, (1, 1))


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.tar") if path.stat().st_mtime == 1}


def test_writing_resumes_with_what_is_intact(make_split):
    made = make_split()
    names = sorted(shard.name for shard in made.index.shards)
    (made.folder / names[0]).unlink()
    damaged = bytearray((made.folder / names[1]).read_bytes())
    damaged[700] ^= 1
    (made.folder / names[1]).write_bytes(damaged)
    (made.folder / "index.json").unlink()
    age(made.folder)
    assert make_split().index == made.index == verify_split(made.folder)
    assert kept(made.folder) == set(names[2:])


class Counted(ArraySamples):
    """Samples that can be recognised, of which some cannot be read; notes what was asked for."""

    def __init__(self, num: int, *, unreadable: tuple[int, ...] = (), fingerprint: str = "v1") -> None:
        images = np.random.default_rng(0).integers(0, 256, (num, 1, 4, 5), dtype=np.uint8)
        super().__init__(image=images, label=np.arange(num) % 3)
        self.fingerprint, self.asked, self.unreadable = fingerprint, [], unreadable
        self.stop_at: int | None = None

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        self.asked.append(start)
        if start == self.stop_at:
            raise KeyboardInterrupt
        good = [number for number in range(start, stop) if number not in self.unreadable]
        return {name: array[np.array(good, int) - start] for name, array in super().read(start, stop).items()}


def test_packing_that_was_cut_off_goes_on(tmp_path):
    options = {"classes": list("abc"), "block_size": 4, "shard_size": 10}
    first = Counted(37)
    first.stop_at = 20
    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / "a", first, **options)
    again, whole = Counted(37), Counted(37)
    index = write_samples(tmp_path / "a", again, **options)
    assert (first.asked, again.asked) == ([0, 10, 20], [20, 30])
    assert index == write_samples(tmp_path / "b", whole, **options) == verify_split(tmp_path / "a")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    # a finished set, other samples, other sizes, unknown ones, lost or damaged files
    for samples, change, asked in (
        (Counted(37), {}, []),
        (Counted(37, fingerprint="v2"), {}, [0, 10, 20, 30]),
        (Counted(37, fingerprint="v2"), {"block_size": 5}, [0, 10, 20, 30]),
        (Counted(37, fingerprint=""), {}, [0, 10, 20, 30]),
        (Counted(37), {}, [0, 10, 20, 30]),
        (Counted(37), {"resume": False}, [0, 10, 20, 30]),
    ):
        write_samples(tmp_path / "a", samples, **{**options, **change})
        assert samples.asked == asked
    (tmp_path / "a" / "shard-00000.tar").unlink()
    (tmp_path / "a" / "shard-00003.tar").write_bytes(b"cut")
    (tmp_path / "a" / "part-00001.json").write_bytes(b"{}")
    again = Counted(37)
    assert write_samples(tmp_path / "a", again, **options) == index
    assert again.asked == [0, 10, 30]


def test_samples_that_cannot_be_read_are_left_out(tmp_path):
    samples = Counted(37, unreadable=(0, 5, *range(20, 30), 36))
    done: list[tuple[int, int]] = []
    index = write_samples(
        tmp_path, samples, classes=list("abc"), block_size=4, shard_size=10,
        progress=lambda *both: done.append(both),
    )  # fmt: skip
    kept = np.array([number for number in range(37) if number not in samples.unreadable])
    assert [shard.num_samples for shard in index.shards] == [8, 10, 6]
    assert done == [(10, 37), (20, 37), (30, 37), (37, 37)]
    images, labels = Split(tmp_path).gather(np.arange(len(kept)))
    assert np.array_equal(images, samples._arrays["image"][kept])
    assert np.array_equal(labels, kept % 3)
    verify_split(tmp_path)
    with pytest.raises(DataError, match="there are no samples to write; give at least one"):
        write_samples(tmp_path, Counted(3, unreadable=(0, 1, 2)), classes=list("abc"))


def test_without_resume_all_is_written(make_split):
    made = make_split()
    age(made.folder)
    write_split(
        made.folder,
        made.images,
        made.labels,
        classes=made.index.classes,
        block_size=8,
        shard_size=30,
        resume=False,
    )
    assert not kept(made.folder)


def test_a_smaller_set_leaves_no_stale_shard(make_split):
    make_split(103)
    made = make_split(40)
    assert sorted(contents(made.folder)) == ["index.json", "shard-00000.tar", "shard-00001.tar"]


def test_a_failed_write_publishes_no_index(make_split, tmp_path):
    """The second shard's place is taken by a folder, so writing stops there."""
    make_split()
    blocker = tmp_path / "split" / "shard-00001.tar"
    blocker.unlink()
    blocker.mkdir()
    with pytest.raises(
        DataError, match=r"shard-00001\.tar: cannot be written \(Is a directory\); make room there, or choose"
    ):
        make_split(seed=5)
    assert not (tmp_path / "split" / "index.json").exists()
    assert not list((tmp_path / "split").glob(".*"))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/split: cannot be written \(Not a directory\)"):
        write_split(
            tmp_path / "file" / "split",
            np.zeros((1, 1, 2, 2), np.uint8),
            np.zeros(1, np.int64),
            classes=["a"],
        )


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


def test_leftovers_of_a_killed_packing_command_are_removed(make_split):
    """Only names that a writer of ours gives, and not while another command packs there."""
    made = make_split()
    ours = {
        ".shard-00001.0a1b2c3d.tar",
        ".index.0a1b2c3d.json",
        ".shard-00001.tar.ab_cd123",
        ".index.json.abcdefgh",
        ".probe.0a1b2c3d",
    }
    others = {
        ".shard-1.0a1b2c3d.tar",
        ".shard-00001.tar",
        ".shard-00001.0A1B2C3D.tar",
        "notes",
        "shard-x.tar",
    }
    for name in ours | others:
        (made.folder / name).write_bytes(b"")
    packed = contents(make_split().folder)
    assert others < set(packed)
    assert not ours & set(packed)
    (made.folder / ".index.0a1b2c3d.json").write_bytes(b"")
    with SplitFolder(made.folder).packing():
        (made.folder / ".shard-00000.0a1b2c3d.tar").write_bytes(b"")
        make_split()
        assert (made.folder / ".shard-00000.0a1b2c3d.tar").exists()
        assert not (made.folder / ".index.0a1b2c3d.json").exists()


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


def test_a_set_is_packed_into_a_temporary_folder() -> None:
    with temporary_folder() as folder:  # both lock it
        images = np.zeros((3, 1, 2, 2), dtype=np.uint8)
        assert write_split(folder, images, np.arange(3), classes=list("abc")).num_samples == 3
