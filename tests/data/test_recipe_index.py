"""The index of recipes: what it says, what is refused, and that its base is checked with it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recipe_sets import CLASSES, make_recipes

from capsdist.config import PRESETS, Config, Data
from capsdist.data import TrainStream, check_split, read_index, verify_split, write_split
from capsdist.data.format.head import read_head
from capsdist.data.format.source import open_split
from capsdist.data.recipes.source import Recipes, recipes_over, write_recipes
from capsdist.data.sets.pack import summary
from capsdist.errors import DataError
from capsdist.launch.as_data import fitted
from capsdist.launch.glance import data_problems
from capsdist.storage.place import beside

READERS = [check_split, verify_split, open_split]


def refused(call, *fragments: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(fragment in message for fragment in fragments), message


def alter(folder: Path, **changes) -> None:
    """Write an index with other values, and the digest that fits them, as a forger would."""
    from capsdist.data.format.packed import index_digest

    path = folder / "index.json"
    document = json.loads(path.read_text()) | changes
    del document["digest"]
    path.write_text(json.dumps({**document, "digest": index_digest(document)}))


def test_a_split_of_recipes_is_one_small_file(tmp_path):
    made = make_recipes(tmp_path)
    assert [path.name for path in made.folder.iterdir()] == ["index.json"]
    assert (made.folder / "index.json").stat().st_size < 2000
    index = check_split(made.folder, image_shape=(2, 10, 9), num_classes=5, crop=9, remedy="r")
    assert index == made.index == verify_split(made.folder)
    assert (index.num_samples, index.num_classes, index.label_name) == (420, 5, "labels")
    assert index.field["labels"].shape == (2,)
    assert index.shard_starts.tolist() == [0, 420]
    shown = summary("there", index)
    assert shown == (
        f"there: 420 images of 2 x 10 x 9 in recipes over 60 images of digits, digest {index.digest[:16]}"
    )


def test_the_same_recipes_have_the_same_digest(tmp_path):
    made = make_recipes(tmp_path)
    options = {"partners": 7, "pad": 2, "shift": 2}
    assert recipes_over(tmp_path, "digits", **options) == made.index
    for change in ({"shift": 1}, {"pad": 3}, {"partners": 6}, {"seed": 1}, {"first": 1}, {"shard_size": 100}):
        other = recipes_over(tmp_path, "digits", **{**options, **change})
        assert other.digest != made.index.digest
    write_recipes(made.folder, other)
    assert open_split(made.folder).index == other


def test_recipes_take_the_place_of_a_split_of_shards(tmp_path):
    made = make_recipes(tmp_path)
    images, labels = np.zeros((9, 1, 4, 4), np.uint8), np.zeros(9, np.int64)
    write_split(made.folder, images, labels, classes=CLASSES)
    assert read_index(made.folder).num_samples == 9
    write_recipes(made.folder, made.index)
    assert [path.name for path in made.folder.glob("*.tar")] == []
    assert check_split(made.folder) == made.index


@pytest.mark.parametrize("reader", READERS)
def test_another_base_is_refused(tmp_path, reader):
    made = make_recipes(tmp_path)
    make_recipes(tmp_path / "other", images_seed=1)
    base = tmp_path / "digits"
    base.rename(tmp_path / "moved")
    refused(lambda: reader(made.folder, remedy="do x"), f"{base}", "do x")
    (tmp_path / "other/digits").rename(base)
    found = read_index(base).digest
    refused(
        lambda: reader(made.folder, remedy="do x"),
        f"{base}: has the digest {found}, its recipes were made over {made.index.base.digest}; do x",
    )


def test_a_damaged_base_is_found_before_and_during_a_run(tmp_path):
    made = make_recipes(tmp_path)
    shard = tmp_path / "digits/shard-00001.tar"
    data = bytearray(shard.read_bytes())
    data[2000] ^= 4
    shard.write_bytes(data)
    for call in (
        lambda: check_split(made.folder),
        lambda: verify_split(made.folder),
        lambda: list(TrainStream(made.folder, seed=0, global_batch_size=8, lanes=2).epoch(0)),
    ):
        refused(call, "digits/shard-00001.tar: wrong checksum, the file is damaged")
    shard.unlink()
    refused(lambda: check_split(made.folder, remedy="do x"), "shard-00001.tar: shard is missing; do x")


def test_after_the_first_batch_no_file_is_read(tmp_path):
    made = make_recipes(tmp_path)
    source = made.source
    first = source.fields(np.arange(50), "image")["image"]
    (tmp_path / "digits/shard-00000.tar").unlink()
    assert np.array_equal(source.fields(np.arange(50), "image")["image"], first)


OTHER_FIELDS = [
    {"name": "digits", "dtype": "<i8", "shape": [2]},
    {"name": "image", "dtype": "|u1", "shape": [2, 10, 9]},
    {"name": "labels", "dtype": "<i8", "shape": [2]},
    {"name": "moves", "dtype": "<i8", "shape": [2, 2]},
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"version": 2},
            "has format 'capsdist-recipes' version 2, this program reads 'capsdist-recipes' version",
        ),
        ({"num_samples": 421}, "num_samples=421, but its recipes make 420"),
        ({"partners": 0}, "partners"),
        ({"partners": 1 << 40}, "partners"),
        ({"pad": 1}, "has other samples, fields or classes than its recipes say"),
        ({"pad": -1}, "pad"),
        ({"shift": 6}, "shift=6: give 0 to 5"),
        ({"shard_size": 0}, "shard_size"),
        ({"classes": ["a", "a"]}, "classes[1]='a' is also classes[0]"),
        ({"fields": []}, "fields"),
        ({"fields": OTHER_FIELDS}, "fields digits, image, labels, moves are not those of recipes with pad=2"),
        ({"extra": 1}, "extra"),
        ({"seed": "0"}, "seed"),
    ],
)
def test_a_forged_index_is_refused_in_one_line(tmp_path, changes, message):
    made = make_recipes(tmp_path)
    alter(made.folder, **changes)
    refused(lambda: check_split(made.folder, remedy="do x"), f"{tmp_path}/", message, "; do x")


@pytest.mark.parametrize("split", ["../digits", "/etc", "..", "", ".", "a/b", "pairs"])
def test_the_base_is_beside_the_recipes_and_nowhere_else(tmp_path, split):
    made = make_recipes(tmp_path)
    base = json.loads((made.folder / "index.json").read_text())["base"]
    alter(made.folder, base={**base, "split": split})
    if split == "pairs":  # recipes over themselves
        refused(lambda: check_split(made.folder), "has format 'capsdist-recipes'")
    else:
        refused(lambda: check_split(made.folder), "index.json: base.split")


@pytest.mark.parametrize(("first", "last"), [(5, 5), (0, 61), (70, 80)])
def test_other_samples_than_the_base_has_are_refused(tmp_path, first, last):
    made = make_recipes(tmp_path)
    base = json.loads((made.folder / "index.json").read_text())["base"]
    alter(made.folder, base={**base, "first": first, "last": last}, num_samples=7 * (last - first))
    refused(lambda: check_split(made.folder), str(tmp_path))
    refused(
        lambda: recipes_over(tmp_path, "digits", partners=1, pad=0, shift=0, first=first, last=last),
        f"{tmp_path}: recipes over the images {first} to {last} of digits; give some of its 60 images",
    )


def test_more_partners_than_images_of_other_classes_are_refused(tmp_path):
    made = make_recipes(tmp_path)
    most = int(np.bincount(made.labels).max())
    options = {"pad": 0, "shift": 0}
    recipes_over(tmp_path, "digits", partners=60 - most, **options)
    message = (
        f"partners={61 - most}, but only {60 - most} of the 60 images are of other classes than 'a'; pack"
    )
    refused(lambda: recipes_over(tmp_path, "digits", partners=61 - most, **options), message)
    forged = replace(made.index, partners=61 - most).with_digest()
    write_recipes(made.folder, forged)
    refused(lambda: Recipes(made.folder).fields(np.arange(3), "image"), f"{tmp_path}/digits: {message}")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("/data/set/train", "/data/set/other"),
        ("/data/set/train/", "/data/set/other"),
        ("file:///data/set/train", "file:///data/set/other"),
        ("s3://bucket/set/train/?region=a/b", "s3://bucket/set/other?region=a/b"),
        ("s3://bucket/train", "s3://bucket/other"),
    ],
)
def test_the_folder_beside(place, expected):
    assert beside(place, "other") == expected


# ---- before a run, without numpy


def config_of(root: Path) -> Config:
    return Config(data=Data(name=root.name, root=str(root.parent), train_split="pairs", test_split="pairs"))


def test_a_head_says_what_the_images_are(tmp_path):
    made = make_recipes(tmp_path / "set")
    head = read_head(str(made.folder), "do x")
    assert (head.num_channels, head.image_size) == (2, (10, 9))
    assert (head.num_labels, head.classes, head.num_samples) == (2, CLASSES, 420)
    data = config_of(tmp_path / "set").data
    model = fitted(PRESETS["capsnet_small"]().model_copy(update={"data": data})).model
    assert (model.in_channels, model.image_size, model.num_classes, model.num_labels) == (2, (10, 9), 5, 2)


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lambda root: (root / "digits/shard-00000.tar").unlink(), "digits/shard-00000.tar is missing"),
        (lambda root: (root / "digits/index.json").unlink(), "digits/index.json is missing"),
        (lambda root: (root / "digits/index.json").write_text("{"), "digits/index.json is not JSON"),
        (lambda root: alter(root / "digits", licence="x"), "its recipes were made over"),
        (lambda root: alter(root / "pairs", version=2), "this program reads 'capsdist-recipes' version 1"),
    ],
)
def test_a_check_sees_the_base(tmp_path, damage, rule):
    root = tmp_path / "set"
    make_recipes(root)
    config = config_of(root)
    assert not any(rule in problem.rule for problem in data_problems(config))
    damage(root)
    [problem] = data_problems(config)
    assert (problem.field, rule in problem.rule) == ("data.train_split", True), problem


def test_a_check_imports_neither_torch_nor_numpy(tmp_path):
    make_recipes(tmp_path / "set")
    code = (
        "import sys\nfrom capsdist.config import Config, Data\n"
        "from capsdist.launch.glance import data_problems\n"
        f"data = Data(name='set', root={str(tmp_path)!r}, train_split='pairs', test_split='pairs')\n"
        "print(len(data_problems(Config(data=data))) > 0, {'torch', 'ray', 'numpy'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "True set()"  # the network of the preset takes other images
