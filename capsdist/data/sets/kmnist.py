"""KMNIST: 60,000 + 10,000 cursive Japanese characters of 28x28 (Clanuwat et al. 2018)."""

from __future__ import annotations

from pathlib import Path

from capsdist.data.format.samples import Samples, in_memory
from capsdist.data.sets.idx import check_counts, load_or_download
from capsdist.data.sets.spec import DatasetSpec

__all__ = ["KMNIST"]

# Of the files with .gz: those of their content are not published.
_SHA256 = {
    "train-images-idx3-ubyte": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
    "train-labels-idx1-ubyte": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
    "t10k-images-idx3-ubyte": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
    "t10k-labels-idx1-ubyte": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
}
_MIRRORS = ("http://codh.rois.ac.jp/kmnist/dataset/kmnist",)
_IMAGES_OF_A_CLASS = {"train": 6000, "test": 1000}


def _load(source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    splits = load_or_download(source, _SHA256, _MIRRORS, folder, command=command, packed=True)
    for split, (images, labels) in splits.items():
        check_counts(images, labels, 10, [_IMAGES_OF_A_CLASS[split]], f"{source or folder}: {split}")
    return in_memory(splits)


KMNIST = DatasetSpec(
    name="kmnist",
    licence="CC BY-SA 4.0 (Clanuwat et al. 2018)",
    title="KMNIST (60,000 + 10,000 cursive Japanese characters of 28x28) from its four original idx files",
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    load=_load,
    source=(
        "Folder that holds the four original idx files; with .gz their checksums are compared, without it "
        "their structure is checked; default: download them."
    ),
)
