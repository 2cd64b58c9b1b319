"""Images of the user's own: from sub-folders or a table to splits, whatever their sizes and formats."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capsdist.cli.main import main
from capsdist.data import Split, read_index, verify_split
from capsdist.data.decoding import decode_into
from capsdist.data.format.source import open_split
from capsdist.data.sets.folder import FolderOptions, pack_folder
from capsdist.errors import DataError

COLOURS = {"blue": (30, 40, 220), "green": (40, 210, 50), "red": (220, 30, 40)}
SUFFIXES = ("jpg", "png", "webp", "bmp")


def draw(path: Path, colour: tuple[int, int, int], size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], colour).save(path)


def draw_all(root: Path, num: int = 20) -> None:
    """`num` images of each colour, of several sizes and formats."""
    draws = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(num):
            size = tuple(int(side) for side in draws.integers(5, 60, 2))
            draw(root / name / f"{number}.{SUFFIXES[number % 4]}", colour, size)


def options(tmp_path: Path, **values: object) -> FolderOptions:
    return FolderOptions(**{"name": "mine", "root": str(tmp_path / "data"), "size": (8,), **values})


def colours_of(split: Path) -> list[str]:
    """The nearest colour of every image, in storage order."""
    images, _ = Split(split).gather(np.arange(read_index(split).num_samples))
    means = images.reshape(len(images), 3, -1).mean(2)
    names, values = list(COLOURS), np.array(list(COLOURS.values()))
    return [names[number] for number in ((means[:, None] - values) ** 2).sum(2).argmin(1)]


def test_folders_become_three_splits_with_every_image_once(tmp_path):
    draw_all(tmp_path / "photos")
    (tmp_path / "photos/red/notes.txt").write_text("no image")
    (tmp_path / "photos/.hidden").mkdir()
    assert pack_folder(tmp_path / "photos", options(tmp_path, licence="mine")) == []
    sizes = {}
    for split in ("train", "validation", "test"):
        folder = tmp_path / "data/mine" / split
        index = verify_split(folder)
        assert (index.classes, index.image_shape, index.licence) == (tuple(COLOURS), (3, 8, 8), "mine")
        labels = Split(folder).gather(np.arange(index.num_samples))[1]
        assert [index.classes[label] for label in labels] == colours_of(folder)
        sizes[split] = np.bincount(labels).tolist()
    assert sizes == {"train": [16] * 3, "validation": [2] * 3, "test": [2] * 3}
    order = colours_of(tmp_path / "data/mine/train")
    assert order != sorted(order)
    digests = {split: read_index(tmp_path / "data/mine" / split).digest for split in sizes}
    pack_folder(tmp_path / "photos", options(tmp_path, root=str(tmp_path / "again"), licence="mine"))
    assert digests == {split: read_index(tmp_path / "again/mine" / split).digest for split in sizes}


def test_given_splits_and_grey_rectangles(tmp_path):
    draw_all(tmp_path / "photos/train", 6)
    draw_all(tmp_path / "photos/val", 3)
    pack_folder(tmp_path / "photos", options(tmp_path, grey=True, size=(6, 10), test=0.0))
    assert sorted(path.name for path in (tmp_path / "data/mine").iterdir()) == ["train", "validation"]
    index = read_index(tmp_path / "data/mine/validation")
    assert (index.image_shape, index.num_samples) == ((1, 6, 10), 9)


def test_a_table_with_several_labels_and_splits(tmp_path):
    draw_all(tmp_path / "photos", 4)
    rows = [
        ("red/0.jpg", "warm;bright", "train"),
        ("red/1.png", "warm", "train"),
        ("blue/2.webp", "cold", "train"),
    ]
    rows += [("green/3.bmp", " cold ; bright", "test")]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "split"), *rows])
    pack_folder(tmp_path / "photos", options(tmp_path, table=tmp_path / "labels.csv", validation=0.0))
    index = read_index(tmp_path / "data/mine/train")
    assert index.classes == ("bright", "cold", "warm")
    labels = Split(tmp_path / "data/mine/train").gather(np.arange(3))[1]
    assert sorted(map(sorted, labels.tolist())) == [[-1, 1], [-1, 2], [0, 2]]
    test = Split(tmp_path / "data/mine/test").gather(np.arange(1))[1]
    assert sorted(test[0].tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "labels.csv: has no columns file and label"),
        ("file,label\nred/0.jpg,\n", "labels.csv: line 2 has no label"),
        ("file,label\n,red\n", "labels.csv: line 2 has no file"),
        ("file,label\n../x.jpg,red\n", r"line 2: \.\./x\.jpg lies outside"),
        ("file,label\n/etc/passwd,red\n", "line 2: /etc/passwd lies outside"),
        (
            "file,label,split\nred/0.jpg,red,other\n",
            "line 2: split 'other' is none of train, ",
        ),
        ("", "has no columns"),
        ("\x00", "labels.csv: "),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, text, message):
    draw_all(tmp_path / "photos", 1)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        pack_folder(tmp_path / "photos", options(tmp_path, table=tmp_path / "labels.csv"))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_left_out_or_fatal(tmp_path, capsys):
    draw_all(tmp_path / "photos", 5)
    bad = tmp_path / "photos/red/bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff no image")
    (tmp_path / "photos/red/gone.png").symlink_to("/nowhere")
    [(path, reason)] = pack_folder(tmp_path / "photos", options(tmp_path))
    assert path == bad
    assert reason.startswith("is no image (")
    with pytest.raises(DataError, match=r"bad\.jpg: is no image \(.*; remove it, or pack without --strict"):
        pack_folder(tmp_path / "photos", options(tmp_path, strict=True, name="strict"))
    words = ["pack", "folder", str(tmp_path / "photos"), "--name", "said", "--size", "8", "12"]
    assert main([*words, "--root", str(tmp_path / "data")]) == 0
    printed, errors = capsys.readouterr()
    assert f"left out: {bad}: is no image" in printed + errors
    assert read_index(tmp_path / "data/said/train").image_shape == (3, 8, 12)


def test_packing_again_reads_no_file_that_has_not_changed(tmp_path, monkeypatch):
    draw_all(tmp_path / "photos", 5)
    pack_folder(tmp_path / "photos", options(tmp_path))
    before = read_index(tmp_path / "data/mine/train")
    seen = []

    def note(content: bytes, pixels: np.ndarray) -> None:
        seen.append(len(content))
        decode_into(content, pixels)

    monkeypatch.setattr("capsdist.data.sets.image_files.decode_into", note)
    pack_folder(tmp_path / "photos", options(tmp_path))
    assert (seen, read_index(tmp_path / "data/mine/train")) == ([], before)
    os.utime(tmp_path / "photos/red/0.jpg", (1, 1))
    pack_folder(tmp_path / "photos", options(tmp_path))
    assert len(seen) == 3  # the images of its split, validation or test
    assert read_index(tmp_path / "data/mine/train") == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (0,)}, "size=.*give one or two numbers of pixels"),
        ({"size": (8, 8, 8)}, "give one or two numbers"),
        ({"test": 0.9, "validation": 0.2}, "give shares whose sum is below 1"),
        ({"test": -0.1}, "give shares"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, values, message):
    draw_all(tmp_path / "photos", 1)
    with pytest.raises(DataError, match=message):
        pack_folder(tmp_path / "photos", options(tmp_path, **values))
    assert not (tmp_path / "data").exists()


def test_a_folder_without_images_is_told(tmp_path):
    for make in (lambda: None, (tmp_path / "photos").mkdir, (tmp_path / "photos/red").mkdir):
        make()
        with pytest.raises(DataError, match=r"is not a folder|has no sub-folder with images"):
            pack_folder(tmp_path / "photos", options(tmp_path))


PACK = """
import sys
from pathlib import Path
from capsdist.data.sets.folder import FolderOptions, pack_folder
options = FolderOptions(name="mine", root=sys.argv[2], size=(96,), test=0.0, validation=0.0)
pack_folder(Path(sys.argv[1]), options)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """The same file under many names: 12,000 images of 96x96 have 332 MB, a shard 32.

    VmHWM is of the process alone; ru_maxrss counts the one that started it as well.
    """
    draw(tmp_path / "photos/red/0.jpg", COLOURS["red"], (96, 96))
    for number in range(1, 12_000):
        os.link(tmp_path / "photos/red/0.jpg", tmp_path / f"photos/red/{number}.jpg")
    done = subprocess.run(
        [sys.executable, "-c", PACK, str(tmp_path / "photos"), str(tmp_path / "data")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert read_index(tmp_path / "data/mine/train").num_samples == 12_000
    assert int(done.stdout.splitlines()[-1]) * 1024 < 500e6


@pytest.mark.parametrize("several", [False, True])
def test_encoded_files_are_stored_as_they_are(tmp_path, several):
    draw_all(tmp_path / "photos", 6)
    bad = tmp_path / "photos/red/cut.jpg"
    bad.write_bytes((tmp_path / "photos/red/0.jpg").read_bytes()[:200])
    table = None
    if several:
        table = tmp_path / "labels.csv"
        names = sorted(str(path.relative_to(tmp_path / "photos")) for path in tmp_path.glob("photos/*/*"))
        lines = [f"{name},{name.partition('/')[0]};photo,train" for name in names]
        table.write_text("\n".join(["file,label,split", *lines]))
    left = pack_folder(
        tmp_path / "photos", options(tmp_path, encoded=True, validation=0.0, test=0.0, table=table)
    )
    assert [path for path, _ in left] == [bad]
    folder = tmp_path / "data/mine/train"
    index = verify_split(folder)
    assert (index.num_samples, index.stored_shape) == (18, (3, None, None))
    stored = set()
    with tarfile.open(folder / "shard-00000.tar") as tar:
        for member in tar:
            content = tar.extractfile(member).read()
            if not member.name.endswith((".cls", ".json")):
                stored.add(content)
    files = {path.read_bytes() for path in tmp_path.glob("photos/*/*") if path != bad}
    assert stored == files
    split = open_split(folder, size=(8, 8))
    label = index.label_name
    assert label == ("labels" if several else "label")
    out = {"image": np.empty((18, 3, 8, 8), np.uint8)}
    out[label] = np.empty((18, *index.field[label].shape) if several else 18, np.int64)
    split.gather_into(np.arange(18), out)
    names, values = list(COLOURS), np.array(list(COLOURS.values()))
    means = out["image"].reshape(18, 3, -1).mean(2)
    nearest = [names[number] for number in ((means[:, None] - values) ** 2).sum(2).argmin(1)]
    first = out[label][:, 0] if several else out[label]
    assert [index.classes[number] for number in first] == nearest
