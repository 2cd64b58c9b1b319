"""A split written again, after it was cut off, over damaged files, over another set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from capsdist.data import Split, verify_split, write_split
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.samples import ArraySamples
from capsdist.data.format.shards import write_samples
from capsdist.errors import DataError
from capsdist.storage.temporary import temporary_folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_arguments_make_equal_bytes(make_split):
    first, second = make_split(name="a"), make_split(name="b")
    assert contents(first.folder) == contents(second.folder)
    other = make_split(name="c", seed=1)
    assert other.index.digest != first.index.digest


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


def test_a_set_is_packed_into_a_temporary_folder() -> None:
    with temporary_folder() as folder:  # both lock it
        images = np.zeros((3, 1, 2, 2), dtype=np.uint8)
        assert write_split(folder, images, np.arange(3), classes=list("abc")).num_samples == 3
