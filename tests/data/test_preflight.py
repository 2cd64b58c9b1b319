"""Bad data is refused before training: files really damaged, each error one line with value and remedy."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from capsdist.data import TrainStream, check_split, read_index, verify_split
from capsdist.errors import DataError

REMEDY = "run: python data_prep/pack_mnist.py"


def refused(call, *fragments: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(fragment in message for fragment in fragments), message


def flip(path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def test_a_good_split_passes(make_split):
    made = make_split()
    assert check_split(made.folder, image_shape=(2, 5, 3), num_classes=10, crop=3) == made.index
    assert check_split(made.folder, image_shape=(2, None, None), num_classes=11) == made.index


@pytest.mark.parametrize("reader", [check_split, verify_split, read_index])
def test_missing_folder_names_the_packing_command(tmp_path, reader):
    folder = tmp_path / "mnist" / "train"
    refused(lambda: reader(folder, remedy=REMEDY), f"{folder}: there is no such data set; {REMEDY}")


def test_a_data_set_in_the_place_of_a_split_is_told_which_splits_there_are(make_split, tmp_path):
    for name in ("train", "test"):
        make_split(name=name)
    message = f"{tmp_path}: is a data set with the splits test, train; name one of them"
    refused(lambda: read_index(tmp_path, remedy=REMEDY), message)


def test_a_split_of_another_name_is_told_which_there_are(make_split, tmp_path):
    for name in ("train", "test", "unfinished"):
        make_split(name=name)
    (tmp_path / "unfinished/index.json").unlink()
    message = (
        f"{tmp_path}/trian: there is no such split, {tmp_path} has test, train; name one of them, or {REMEDY}"
    )
    refused(lambda: check_split(tmp_path / "trian", remedy=REMEDY), message)


def test_missing_folder_without_a_remedy(tmp_path):
    refused(lambda: check_split(tmp_path / "no"), "no: there is no such data set; pack it", "capsdist pack")


def test_missing_index(make_split):
    made = make_split()
    (made.folder / "index.json").unlink()
    refused(
        lambda: check_split(made.folder, remedy=REMEDY),
        "split: has no index.json, so it was never packed",
        REMEDY,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "is not JSON (line 1: Expecting property name"),
        (b'{"format": 1, "format": 1}', "has the key 'format' twice"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[1, 2]", "is not an index of this project"),
        (b'{"shards": []}', "is not an index of this project"),
        (b"\xff\xfe\x00", "is not UTF-8 at byte 0"),
        (b'{"format": "capsdist-blocks", "version": 1}', "was altered, it does not match its own digest"),
    ],
)
def test_unreadable_index(make_split, content, message):
    made = make_split()
    (made.folder / "index.json").write_bytes(content)
    refused(lambda: check_split(made.folder, remedy=REMEDY), f"index.json: {message}", f"; {REMEDY}")


@pytest.mark.parametrize(("field", "value"), [("version", 3), ("version", True), ("format", "other")])
def test_index_of_another_version(make_split, field, value):
    path = make_split().folder / "index.json"
    document = json.loads(path.read_text())
    document[field] = value
    path.write_text(json.dumps(document))
    refused(
        lambda: check_split(path.parent, remedy=REMEDY),
        f"has format {document['format']!r} version {document['version']}, this program reads",
        "'capsdist-blocks' version 1",
        REMEDY,
    )


def test_every_altered_digit_of_an_index_is_found(make_split):
    """One digit changed, anywhere: sizes, offsets, counts, checksums."""
    path = make_split(20, block_size=8, shard_size=16).folder / "index.json"
    text = path.read_text()
    places = [n for n, letter in enumerate(text) if letter.isdigit() and n > text.index('"fields"')]
    for place in np.random.default_rng(len(places)).choice(places, 60, replace=False):
        path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        refused(lambda: check_split(path.parent), "was altered, it does not match its own digest")


def test_missing_shard(make_split):
    made = make_split()
    (made.folder / "shard-00002.tar").unlink()
    refused(lambda: check_split(made.folder, remedy=REMEDY), "shard-00002.tar: shard is missing", REMEDY)
    refused(lambda: check_split(made.folder), "pack the set again, intact shards are kept")


@pytest.mark.parametrize("lost", [1, 512, 10_000])
def test_truncated_shard(make_split, lost):
    made = make_split()
    size = made.index.shards[1].size_bytes
    with (made.folder / "shard-00001.tar").open("r+b") as file:
        file.truncate(size - lost)
    refused(
        lambda: check_split(made.folder, remedy=REMEDY),
        f"shard-00001.tar: has {size - lost} bytes instead of {size}",
    )


def test_empty_shard(make_split):
    made = make_split()
    (made.folder / "shard-00001.tar").write_bytes(b"")
    refused(lambda: check_split(made.folder), "shard-00001.tar: has 0 bytes instead of")


@pytest.mark.parametrize("place", [0, 300, 520, 1024, 1029, -1], ids=lambda place: f"byte {place}")
def test_one_flipped_bit(make_split, place):
    """In the tar header, the npy header, the pixels, the padding."""
    made = make_split()
    flip(made.folder / "shard-00000.tar", place)
    refused(lambda: check_split(made.folder, remedy=REMEDY), "shard-00000.tar: wrong checksum", REMEDY)


@pytest.mark.parametrize("num_classes", [9, 3])
def test_more_classes_than_the_network_has(make_split, num_classes):
    refused(
        lambda: check_split(make_split().folder, num_classes=num_classes),
        f"has 10 classes, the model takes {num_classes}",
        "set --model.num-classes 10",
    )


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 28, 28), (2, None, 5)])
def test_wrong_image_shape(make_split, shape):
    made = make_split()
    text = " x ".join("any" if size is None else str(size) for size in shape)
    refused(
        lambda: check_split(made.folder, image_shape=shape),
        f"images are 2 x 5 x 3 (C x H x W), the model takes {text}",
        "model.in_channels and model.image_size",
    )


def test_images_smaller_than_the_crop(make_split):
    refused(
        lambda: check_split(make_split().folder, crop=4),
        "images are 2 x 5 x 3",
        "smaller than the crop 4; lower data.crop",
    )


def test_verification_compares_sha256_too(make_split, monkeypatch):
    """Only a file made to fool xxh3 differs in sha256 alone, so the index is given another sha256 here."""
    made = make_split()
    path = made.folder / "index.json"
    index = made.index
    shards = (replace(index.shards[0], sha256="0" * 64), *index.shards[1:])
    altered = replace(index, shards=shards).with_digest()
    path.write_text(altered.to_json())
    assert check_split(made.folder) == altered
    refused(lambda: verify_split(made.folder, remedy=REMEDY), "shard-00000.tar: wrong sha256", REMEDY)


def test_a_stream_refuses_what_is_not_there(tmp_path):
    refused(
        lambda: TrainStream(tmp_path / "no", seed=0, global_batch_size=2, lanes=1),
        "there is no such data set",
    )
