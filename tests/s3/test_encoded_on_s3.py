"""Encoded images on S3: the same objects as local files, read through the cache, indexed where they lie."""

from __future__ import annotations

import numpy as np
import pytest
from places import Place

from capsdist.data import check_split, verify_split
from capsdist.data.encoded.register import index_tars
from capsdist.data.format.source import open_split
from capsdist.data.sets.webdataset import WebdatasetOptions, pack_webdataset
from capsdist.errors import DataError
from encoded_images import Images, write

pytestmark = pytest.mark.s3


def read(folder: object) -> np.ndarray:
    images = np.empty((40, 3, 9, 8), np.uint8)
    open_split(str(folder), size=(9, 8)).gather_into(np.arange(40), {"image": images})
    return images


def test_the_objects_are_the_files_and_read_alike(place: Place, tmp_path):
    images = Images(40)
    assert write(place.url, images) == write(tmp_path / "local", images)
    local = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert place.objects() == local
    assert check_split(place.url).digest == verify_split(place.url).digest
    assert np.array_equal(read(place.url), images.decoded(np.arange(40), (3, 9, 8)))


def test_a_damaged_copy_in_the_cache_is_fetched_again(place: Place):
    images = Images(40)
    write(place.url, images)
    read(place.url)
    for path in place.cache.rglob("*"):
        if path.is_file() and path.stat().st_size >= 6000:
            path.chmod(0o644)
            path.write_bytes(bytes(path.stat().st_size))
    assert np.array_equal(read(place.url), images.decoded(np.arange(40), (3, 9, 8)))


def test_foreign_tar_files_are_indexed_where_they_lie(place: Place, tmp_path):
    images = Images(40)
    write(f"{place.url}/tars", images)
    before = place.objects("tars/")
    index = index_tars(f"{place.url}/tars", str(tmp_path / "mine"))
    assert index.location == f"{place.url}/tars"
    assert np.array_equal(read(tmp_path / "mine"), images.decoded(np.arange(40), (3, 9, 8)))
    assert place.objects("tars/") == before
    place.delete(f"tars/{index.shards[0].name}")
    with pytest.raises(DataError, match="is missing"):
        check_split(tmp_path / "mine")


def test_foreign_tar_files_are_packed_from_s3_to_s3(place: Place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = Images(40)
    write(f"{place.url}/tars", images)
    options = WebdatasetOptions("mine", encoded=True, validation=0, test=0, root=f"{place.url}/data")
    assert pack_webdataset(f"{place.url}/tars", options) == []
    index = verify_split(f"{place.url}/data/mine/train", decode_size=8)
    assert index.num_samples == 40
    assert list((tmp_path / "data/originals/mine").iterdir()) == []
    local = WebdatasetOptions("mine", encoded=True, validation=0, test=0, root=str(tmp_path / "here"))
    write(tmp_path / "tars", images)
    pack_webdataset(str(tmp_path / "tars"), local)
    local_files = {path.name: path.read_bytes() for path in (tmp_path / "here/mine/train").iterdir()}
    assert place.objects("data/mine/") == {
        f"data/mine/train/{name}": file for name, file in local_files.items()
    }
