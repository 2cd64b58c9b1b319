"""Packing in parallel with Ray: the same bytes as one process writes, and only what is missing again."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_trees import class_folders, imagenet, write_folder

from capsdist.data.encoded.index import EncodedIndex
from capsdist.data.encoded.write import write_encoded
from capsdist.data.sets.imagenet import ImageNetFacts, load_imagenet
from capsdist.data.sets.members import Members
from capsdist.errors import DataError
from capsdist.launch.packing import shards_by_ray
from limits import PATIENCE_S

WNIDS = ("n00000001", "n00000002", "n00000003")
FACTS = ImageNetFacts(num_classes=3, counts={"train": 36, "test": 3})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = class_folders("set", {"train": 12, "val": 1}, WNIDS)
    return write_folder(tmp_path_factory.mktemp("imagenet"), files) / "set"


def write(folder: Path, members: Members, **options: object) -> EncodedIndex:
    return write_encoded(folder, members, classes=members.classes, shard_bytes=6000, **options)


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_any_number_of_tasks_writes_the_bytes_of_one_process(ray_cluster, source, tmp_path):
    train = load_imagenet(source, FACTS)["train"]
    index = write(tmp_path / "one", train)
    assert len(index.shards) > 4
    expected = files_of(tmp_path / "one")
    for workers in (1, 3):
        done: list[int] = []
        with shards_by_ray(workers) as run:
            folder = tmp_path / f"by{workers}"
            write(folder, train, run=run, progress=lambda now, total, done=done: done.append(now))
        assert files_of(folder) == expected
        assert done == np.cumsum([shard.num_samples for shard in index.shards]).tolist()


def test_only_what_is_missing_or_damaged_is_written_again(ray_cluster, source, tmp_path):
    train = load_imagenet(source, FACTS)["train"]
    folder = tmp_path / "set"
    with shards_by_ray(2) as run:
        index = write(folder, train, run=run)
        times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        (folder / "index.json").unlink()
        (folder / "shard-00001.tar").unlink()
        (folder / "shard-00002.tar").write_bytes(b"damaged")
        again = write(folder, load_imagenet(source, FACTS)["train"], run=run)
    assert again == index
    new = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert {name for name in new if name.startswith("shard")} == {"shard-00001.tar", "shard-00002.tar"}


def test_a_damaged_image_ends_packing_with_its_name_and_without_an_index(ray_cluster, tmp_path):
    train, _ = imagenet()
    name = min(train)
    train[name] = b"\xff\xd8\xff" + bytes(100)
    files = {f"val/{wnid}/{wnid}.JPEG": train[max(train)] for wnid in {path.split("/")[1] for path in train}}
    source = write_folder(tmp_path / "source", {**train, **files})
    members = load_imagenet(source, ImageNetFacts(num_classes=4, counts={"train": 16, "test": 4}))["train"]
    match = rf"^{source / name}: is no image \(.*\); get the original again$"
    with shards_by_ray(2) as run, pytest.raises(DataError, match=match):
        write(tmp_path / "set", members, run=run)
    assert not (tmp_path / "set/index.json").exists()


def test_a_number_of_workers_below_zero_is_refused():
    with pytest.raises(DataError, match="workers=-1: give the number of processes"), shards_by_ray(-1):
        pass


OWN_RAY = """
import sys
from dataclasses import replace
from pathlib import Path
from capsdist.data.sets.imagenet import ImageNetFacts, load_imagenet
from capsdist.data.sets.pack import pack_dataset
from capsdist.launch.packing import IMAGENET
facts = ImageNetFacts(num_classes=3, counts={"train": 36, "test": 3})
spec = replace(IMAGENET, load=lambda source, folder, command: load_imagenet(source, facts))
pack_dataset(spec, "pack", source=Path(sys.argv[1]), root="data", workers=2)
"""


def test_without_a_cluster_packing_starts_a_ray_of_its_own(source, tmp_path, short_tmp):
    env = {**os.environ, "TMPDIR": str(short_tmp), "HOME": str(tmp_path)}
    words = [sys.executable, "-c", OWN_RAY, str(source)]
    done = subprocess.run(
        words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "writing up to 2 shards at once with Ray" in done.stderr
    lines = [line.partition(" in ")[0] for line in done.stdout.splitlines()]
    place = "packed: data/imagenet"
    assert lines == [
        f"{place}/train: 36 images of 3 channels and different sizes",
        f"{place}/test: 3 images of 3 channels and different sizes",
    ]
