"""Samples before they are packed: every kind gives the same rows however it is read, and checks them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capsdist.data import Split
from capsdist.data.format.samples import (
    ArraySamples,
    FieldType,
    GeneratedSamples,
    Part,
    PartSamples,
    Samples,
    SelectedSamples,
)
from capsdist.data.sets.pack import pack
from capsdist.errors import DataError

SIZES = (5, 1, 0, 9, 3)


def arrays(num: int = sum(SIZES), seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (num, 2, 3, 4), dtype=np.uint8)
    return {"image": image, "label": rng.integers(0, 5, num), "azimuth": np.arange(num)}


def in_parts(held: dict[str, np.ndarray], loaded: list[int] | None = None) -> PartSamples:
    """The same rows in parts of `SIZES`; the number of a part is noted whenever it is loaded."""

    def load(number: int, start: int) -> dict[str, np.ndarray]:
        if loaded is not None:
            loaded.append(number)
        return {name: array[start : start + SIZES[number]] for name, array in held.items()}

    starts = np.cumsum([0, *SIZES])
    parts = [
        Part(size, lambda number=number: load(number, starts[number]), f"file {number}")
        for number, size in enumerate(SIZES)
    ]
    return PartSamples({name: FieldType.of(array) for name, array in held.items()}, parts)


def generated(held: dict[str, np.ndarray]) -> GeneratedSamples:
    fields = {name: FieldType.of(array) for name, array in held.items()}
    return GeneratedSamples(
        len(held["label"]), fields, lambda ids: {name: array[ids] for name, array in held.items()}
    )


def selected(held: dict[str, np.ndarray]) -> SelectedSamples:
    """The same rows, as every third row of three times as many."""
    wide = {name: np.repeat(array, 3, axis=0) for name, array in held.items()}
    return SelectedSamples(ArraySamples(**wide), np.arange(1, 3 * len(held["label"]), 3))


KINDS = {
    "array": lambda held: ArraySamples(**held),
    "parts": in_parts,
    "generated": generated,
    "selected": selected,
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_how_they_are_read(kind: str) -> None:
    held = arrays()
    samples: Samples = KINDS[kind](held)
    assert len(samples) == sum(SIZES)
    assert samples.fields == {
        "image": FieldType(np.dtype(np.uint8), (2, 3, 4)),
        "label": FieldType(np.dtype(np.int64)),
        "azimuth": FieldType(np.dtype(np.int64)),
    }
    for start in range(len(samples) + 1):
        for stop in range(start, len(samples) + 1):
            found = samples.read(start, stop)
            for name, array in held.items():
                assert found[name].dtype == array.dtype
                assert np.array_equal(found[name], array[start:stop])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, sum(SIZES) + 1)])
def test_rows_that_are_not_there(kind: str, start: int, stop: int) -> None:
    with pytest.raises(
        IndexError, match=f"samples {start} to {stop} of 18; give 0 <= start <= stop <= length"
    ):
        KINDS[kind](arrays()).read(start, stop)


def test_one_part_is_in_memory_at_a_time() -> None:
    loaded: list[int] = []
    samples = in_parts(arrays(), loaded)
    assert loaded == []
    for start in range(0, 18, 2):
        samples.read(start, start + 2)
    assert loaded == [0, 1, 3, 4]  # each once, in storage order; the empty one never
    samples.read(0, 1)
    assert loaded[-1] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": np.zeros((18, 3, 4), np.uint8)},
            r"field image is uint8 \[3, 4\]; give uint8 \[C, H, W\]",
        ),
        ({"image": np.zeros((18, 1, 3, 4))}, "field image is float64"),
        ({"label": np.zeros(18, np.int32)}, r"field label is int32 \[\]; give int64, one a sample"),
        ({"label": np.zeros((18, 2), np.int64)}, r"field label is int64 \[2\]; give int64"),
        ({"azimuth": np.zeros(17)}, "fields have different lengths, .*'azimuth': 17"),
    ],
)
def test_arrays_that_are_no_samples(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArraySamples(**(arrays() | changes))


def test_fields_that_are_missing() -> None:
    with pytest.raises(DataError, match="fields are image; give one of label and labels"):
        ArraySamples(image=arrays()["image"])


@pytest.mark.parametrize("name", ["image", "label", "azimuth"])
def test_a_part_that_is_not_as_declared(name: str) -> None:
    held = arrays()
    fields = {key: FieldType.of(array) for key, array in held.items()}
    for changed in (held[name][:-1], held[name].astype(np.float32), None):
        part = Part(18, lambda changed=changed: {**held, name: changed}, "2.mat")
        with pytest.raises(DataError, match=rf"^2\.mat: field {name} is .*, not .*; get the original$"):
            PartSamples(fields, [part]).read(3, 4)


@pytest.mark.parametrize("ids", [[2, 1], [1, 1], [-1, 2], [0, 18]])
def test_a_selection_that_is_not_ascending(ids: list[int]) -> None:
    with pytest.raises(DataError, match=r"numbers of samples are not ascending within 0\.\.17; sort them"):
        SelectedSamples(ArraySamples(**arrays()), np.array(ids))


# ---- packing


def test_samples_are_packed_like_arrays(tmp_path: Path) -> None:
    held = {"train": arrays(18, 1), "validation": arrays(18, 2)}
    kinds = {"train": in_parts(held["train"]), "validation": selected(held["validation"])}
    pack(tmp_path / "samples", "set", list("abcde"), lambda: kinds, splits=tuple(held))
    whole = {split: ArraySamples(**rows) for split, rows in held.items()}
    pack(tmp_path / "arrays", "set", list("abcde"), lambda: whole, splits=tuple(held))
    for split, rows in held.items():
        packed, other = (Split(tmp_path / kind / "set" / split) for kind in ("samples", "arrays"))
        assert packed.index.digest == other.index.digest
        found = packed.fields(np.arange(18), *rows)
        assert all(np.array_equal(found[name], array) for name, array in rows.items())


def test_pairs_of_images_and_labels_are_packed(tmp_path: Path) -> None:
    rows = arrays(18, 1)
    pair = (rows["image"], rows["label"])
    pack(tmp_path, "set", list("abcde"), lambda: {"train": pair}, splits=("train",))
    images, labels = Split(tmp_path / "set/train").gather(np.arange(18))
    assert np.array_equal(images, pair[0])
    assert np.array_equal(labels, pair[1])
