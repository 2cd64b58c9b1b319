"""Tar files of other programs become readable splits without being changed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from capsdist.cli.main import main
from capsdist.data import verify_split, write_split
from capsdist.data.encoded.register import index_tars
from capsdist.data.format.source import open_split
from capsdist.errors import DataError
from encoded_images import Images, image_file


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_tars(root: Path, images: Images, label) -> list[Path]:
    """Three tar files of images with members from `label(number)`: suffix to content."""
    paths = []
    for part in range(3):
        members = {}
        for number in range(part, len(images.files), 3):
            name = f"some/folder.d/{number:03d}"
            members[f"{name}.{images.suffixes[number]}"] = images.files[number]
            members.update({f"{name}.{suffix}": content for suffix, content in label(number).items()})
        write_tar(root / f"photos-{part}.tar", members)
        paths.append(root / f"photos-{part}.tar")
    return paths


LABELS = {
    "cls": lambda number: {"cls": str(number % 5).encode()},
    "json": lambda number: {"json": json.dumps({"label": f"name {number % 5}", "x": [1]}).encode()},
    "txt": lambda number: {"txt": f"name {number % 5}\n".encode()},
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("beside", [False, True])
def test_foreign_tar_files_are_read_as_they_are(tmp_path, kind, beside):
    images = Images(31)
    paths = write_tars(tmp_path / "tars", images, LABELS[kind])
    before = [path.read_bytes() for path in paths]
    to = tmp_path / "tars" if beside else tmp_path / "data/mine/train"
    words = ["index", str(tmp_path / "tars"), *([] if beside else ["--to", str(to)])]
    assert main(words) == 0
    assert [path.read_bytes() for path in paths] == before
    index = verify_split(to)
    assert index.classes == tuple("01234" if kind == "cls" else [f"name {number}" for number in range(5)])
    order = [number for part in range(3) for number in range(part, 31, 3)]
    split = open_split(to, size=(8, 9))
    out = {"image": np.empty((31, 3, 8, 9), np.uint8), "label": np.empty(31, np.int64)}
    split.gather_into(np.arange(31), out)
    assert np.array_equal(out["image"], images.decoded(np.array(order), (3, 8, 9)))
    assert out["label"].tolist() == [number % 5 for number in order]


def test_samples_without_image_or_label_are_passed_over(tmp_path):
    good = image_file(np.random.default_rng(0), (8, 8))
    write_tar(
        tmp_path / "tars/a.tar",
        {"1.jpg": good, "1.cls": b"1", "2.jpg": good, "3.cls": b"0", "4.jpg": b"none", "4.cls": b"0",
         "5.jpg": good, "5.cls": b"x", "6.jpg": good, "6.png": good, "6.cls": b"0", "7.mp3": b"sound"},
    )  # fmt: skip
    write_tar(tmp_path / "tars/b.tar", {"readme.md": b"nothing"})
    told: list[str] = []
    index = index_tars(str(tmp_path / "tars"), warn=told.append)
    assert (index.num_samples, index.classes, index.location) == (1, ("0", "1"), "")
    for text in ("'2' has no label", "'3' has 0 images", "'4' is passed over", "'5' is passed over: ",
                 "'6' has 2 images", "b.tar: holds no image"):  # fmt: skip
        assert sum(text in line for line in told) == 1, text


def test_named_classes_give_the_numbers(tmp_path):
    write_tars(tmp_path / "tars", Images(10), LABELS["txt"])
    names = [f"name {number}" for number in (4, 3, 2, 1, 0)]
    assert index_tars(str(tmp_path / "tars"), classes=names).classes == tuple(names)
    with pytest.raises(DataError, match="label 'name 4' is none of the 4 classes"):
        index_tars(str(tmp_path / "tars"), classes=names[1:])


def test_what_cannot_be_indexed_is_one_line(tmp_path):
    with pytest.raises(DataError, match="there is no such data set; give a folder with tar files"):
        index_tars(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no tar files"):
        index_tars(str(tmp_path / "empty"))
    write_split(tmp_path / "blocks", np.zeros((2, 1, 3, 3), np.uint8), np.zeros(2, np.int64), classes=["a"])
    with pytest.raises(DataError, match="is the index of another kind of split"):
        index_tars(str(tmp_path / "blocks"))
    assert verify_split(tmp_path / "blocks").num_samples == 2
    good = image_file(np.random.default_rng(0), (8, 8))
    write_tar(tmp_path / "mixed/a.tar", {"1.jpg": good, "1.txt": b"cat", "2.jpg": good, "2.cls": b"1"})
    with pytest.raises(DataError, match="labels are numbers and names, 'cat' for example"):
        index_tars(str(tmp_path / "mixed"))
    path = tmp_path / "mixed/a.tar"
    content = path.read_bytes()
    second = content.index(b"1.txt")  # the name begins its header
    path.write_bytes(content[: second + 100] + bytes(100) + content[second + 200 :])
    with pytest.raises(DataError, match=rf"a\.tar: has no tar header or end at byte {second}; get the file"):
        index_tars(str(tmp_path / "mixed"))
