"""Splits of encoded images: a plain decoder makes the same of the files, in any order and threads."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from capsdist.data import TrainStream, check_split, eval_batches, verify_split
from capsdist.data.encoded.split import EncodedSplit
from capsdist.data.format.head import read_head
from capsdist.data.format.source import open_split
from capsdist.errors import DataError
from encoded_images import CLASSES, Images, write


def gathered(split: EncodedSplit, ids: np.ndarray, *, channels_last: bool = False) -> dict[str, np.ndarray]:
    channels, height, width = split.index.image_shape
    images = np.empty((len(ids), channels, height, width), np.uint8)
    if channels_last:
        images = np.empty((len(ids), height, width, channels), np.uint8).transpose(0, 3, 1, 2)
    out = {"image": images}
    for field in split.index.other_fields:
        out[field.name] = np.empty((len(ids), *field.shape), field.numpy)
    split.gather_into(ids, out)
    return out


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize(("channels", "size"), [(3, (16, 21)), (1, (7, 5)), (3, (1, 1))])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_reader_returns_what_the_decoder_returns(tmp_path, num_threads, channels, size, channels_last):
    images = Images(61, seed=channels + size[0], turns=True)
    index = write(tmp_path / "set", images, num_channels=channels)
    assert len(index.shards) > 3
    assert index.stored_shape == (channels, None, None)
    split = open_split(tmp_path / "set", size=size)
    assert isinstance(split, EncodedSplit)
    split = EncodedSplit(tmp_path / "set", size=size, num_threads=num_threads)
    ids = np.random.default_rng(num_threads).integers(0, 61, 150)
    for part in (ids, ids[:1], ids[:0]):
        out = gathered(split, part, channels_last=channels_last)
        assert np.array_equal(out["image"], images.decoded(part, (channels, *size)))
        assert out["label"].tolist() == [number % 5 for number in part]
        assert out["turn"].tolist() == [images.values(number)["turn"].tolist() for number in part]


def test_a_set_of_one_size_has_it_and_others_ask_for_one(tmp_path):
    write(tmp_path / "same", Images(20, side=9))
    assert check_split(tmp_path / "same", image_shape=(3, 9, 9), crop=8).image_shape == (3, 9, 9)
    assert verify_split(tmp_path / "same").num_samples == 20
    assert read_head(str(tmp_path / "same"), "").image_size == 9
    write(tmp_path / "other", Images(20))
    assert read_head(str(tmp_path / "other"), "").image_size is None
    assert verify_split(tmp_path / "other").stored_shape == (3, None, None)
    with pytest.raises(DataError, match=r"different sizes; set data\.decode_size"):
        check_split(tmp_path / "other", image_shape=(3, 9, 9))
    index = check_split(tmp_path / "other", image_shape=(3, 9, 9), decode_size=9)
    assert index.digest == open_split(tmp_path / "other").index.digest


def test_writing_twice_gives_the_same_bytes_and_reads_nothing_again(tmp_path):
    images = Images(40)
    first = write(tmp_path / "set", images)
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    images.reads = 0
    assert write(tmp_path / "set", images) == first
    assert images.reads == 0
    (tmp_path / "set" / first.shards[1].name).unlink()
    (tmp_path / "set" / first.shards[2].table.name).unlink()
    assert write(tmp_path / "set", images) == first
    assert images.reads == first.shards[1].num_samples + first.shards[2].num_samples
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    fewer = Images(3, seed=1)
    fewer.fingerprint = "fewer"
    write(tmp_path / "set", fewer)
    names = {path.name for path in (tmp_path / "set").glob("[st]*-*")}
    assert names == {"shard-00000.tar", "table-00000.npy"}


@pytest.mark.parametrize("turns", [False, True])
def test_stock_webdataset_and_tar_read_pairs(tmp_path, turns):
    images = Images(30, suffixes=("jpg", "png"), turns=turns)
    index = write(tmp_path / "set", images)
    files = [str(tmp_path / "set" / shard.name) for shard in index.shards]
    found = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgb8"))
    assert len(found) == 30
    for number, sample in enumerate(found):
        suffix = images.suffixes[number]
        expected = np.asarray(Image.open(io.BytesIO(images.files[number])).convert("RGB"))
        assert np.array_equal(sample[suffix], expected)
        assert (sample["json"]["label"] if turns else sample["cls"]) == number % 5
    members = []
    for file in files:
        with tarfile.open(file) as tar:
            members += tar.getmembers()
    assert all(member.isreg() and member.mtime == 0 for member in members)
    assert len(members) == 60


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_every_image_once_an_epoch_and_a_resumed_run_goes_on(tmp_path, world_size, num_threads):
    images = Images(53)
    write(tmp_path / "set", images)
    options = {"seed": 3, "global_batch_size": 12, "lanes": 3, "window": 8, "decode_size": (6, 5)}
    seen = []
    for rank in range(world_size):
        stream = TrainStream(tmp_path / "set", rank=rank, world_size=world_size, **options)
        stream.split._num_threads = num_threads
        batches = list(stream.epoch(1))
        again = list(stream.epoch(1, start_step=2))
        assert all(
            torch.equal(one.images, other.images) for one, other in zip(batches[2:], again, strict=True)
        )
        for batch in batches:
            real = batch.weights > 0
            ids = batch.sample_ids[real].numpy()
            assert np.array_equal(batch.images[real].numpy(), images.decoded(ids, (3, 6, 5)))
            assert batch.labels[real].tolist() == [number % len(CLASSES) for number in ids]
            seen += ids.tolist()
    assert sorted(seen) == list(range(53))
    tested = [
        batch.sample_ids[batch.weights > 0]
        for batch in eval_batches(tmp_path / "set", batch_size=7, decode_size=4)
    ]
    assert torch.cat(tested).tolist() == list(range(53))


def test_wrong_samples_are_one_line(tmp_path):
    images = Images(6)
    with pytest.raises(DataError, match=r"label 4 of sample 4 is outside 0\.\.3"):
        write(tmp_path / "set", images, classes=CLASSES[:4])
    with pytest.raises(DataError, match="num_channels=2; give 1 for grey or 3"):
        write(tmp_path / "set", images, num_channels=2)
    with pytest.raises(DataError, match="no samples to write"):
        write(tmp_path / "set", Images(0))
    with pytest.raises(DataError, match=r"there is no such|has no index"):
        open_split(tmp_path / "set")
