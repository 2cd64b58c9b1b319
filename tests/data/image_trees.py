"""Sets of random image files, laid out exactly as their originals: folders and archives of them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from capsdist.data.format.source import open_split

WNIDS = ("n02124075", "n01443537", "n03126707", "n02012849")
WORDS = {
    "n02124075": "Egyptian cat",
    "n01443537": "goldfish, Carassius auratus",
    "n03126707": "crane",
    "n02012849": "crane",
    "n09999999": "of another set",
}
NAMES = ("goldfish", "crane (n02012849)", "Egyptian cat", "crane (n03126707)")
"""Names of the classes by label: in the order of the wnids."""


def jpeg(draws: np.random.Generator, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    """A smooth random JPEG of any mode that JPEG has: RGB, L (grey), CMYK."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = draws.integers(0, 256, (4, 4, bands), dtype=np.uint8)
    stream = io.BytesIO()
    image = Image.frombytes(mode, (4, 4), coarse.tobytes())
    image.resize(size[::-1], Image.Resampling.BILINEAR).save(stream, "JPEG")
    return stream.getvalue()


def tiny_imagenet(counts: tuple[int, int] = (3, 2), seed: int = 0) -> dict[str, bytes]:
    """The files of Tiny-ImageNet by name; the first image of each class is grey."""
    draws = np.random.default_rng(seed)
    files = {
        "wnids.txt": "".join(f"{wnid}\n" for wnid in WNIDS).encode(),
        "words.txt": "".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()).encode(),
    }
    for wnid in WNIDS:
        for number in range(counts[0]):
            name = f"train/{wnid}/images/{wnid}_{number}.JPEG"
            files[name] = jpeg(draws, mode="RGB" if number else "L")
        boxes = "".join(f"{wnid}_{number}.JPEG\t0\t10\t63\t58\n" for number in range(counts[0]))
        files[f"train/{wnid}/{wnid}_boxes.txt"] = boxes.encode()
    lines = []
    for number in range(counts[1] * len(WNIDS)):
        files[f"val/images/val_{number}.JPEG"] = jpeg(draws)
        lines.append(f"val_{number}.JPEG\t{WNIDS[number % len(WNIDS)]}\t0\t32\t44\t62\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = jpeg(draws)
    return {f"tiny-imagenet-200/{name}": content for name, content in files.items()}


def class_folders(
    folder: str, counts: Mapping[str, int], wnids: tuple[str, ...], seed: int = 0
) -> dict[str, bytes]:
    """The files of Imagenette: `counts` images of every class in train and val."""
    draws = np.random.default_rng(seed)
    files = {f"{folder}/noisy_imagenette.csv": b"path,noisy_labels_0\n"}
    for split, count in counts.items():
        for wnid in wnids:
            for number in range(count):
                size = tuple(int(side) for side in draws.integers(40, 90, 2))
                files[f"{folder}/{split}/{wnid}/{wnid}_{number}.JPEG"] = jpeg(draws, size)
    return files


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write `files` below `root`; return it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write `files` as a zip archive with entries of folders, deflated, as the original is."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in sorted({name.rpartition("/")[0] for name in files}):
            archive.writestr(f"{folder}/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_bytes(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    """Return `files` as a tar archive; mode "w:gz" packs it by gzip."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def stored(folder: Path) -> list[tuple[bytes, str]]:
    """The image files of a split and the names of their classes, in storage order."""
    found = []
    index = open_split(folder).index
    for shard in index.shards:
        with tarfile.open(folder / shard.name) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        images = {name.partition(".")[0]: held for name, held in members.items() if not name.endswith("cls")}
        for name, content in members.items():
            if name.endswith(".cls"):
                found.append((images[name.removesuffix(".cls")], index.classes[int(content)]))
    return found


def imagenet(counts: tuple[int, int] = (4, 2), seed: int = 0) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The training and validation images of ImageNet by name: train/WNID/NAME, NAME.

    As in the original, one file is a PNG under the name of a JPEG, and others are CMYK or grey.
    """
    draws = np.random.default_rng(seed)
    train = {}
    for wnid in sorted(WNIDS):
        for number in range(counts[0]):
            size = tuple(int(side) for side in draws.integers(100, 200, 2))
            mode = ("RGB", "CMYK", "L", "RGB")[number % 4]
            train[f"train/{wnid}/{wnid}_{number}.JPEG"] = jpeg(draws, size, mode)
    stream = io.BytesIO()
    Image.open(io.BytesIO(jpeg(draws))).save(stream, "PNG")
    train[f"train/{WNIDS[0]}/{WNIDS[0]}_0.JPEG"] = stream.getvalue()
    numbers = range(1, counts[1] * len(WNIDS) + 1)
    return train, {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(draws) for number in numbers}


def imagenet_truth(num: int) -> list[str]:
    """The wnid of each validation image."""
    return [WNIDS[(3 * number + number // 4) % 4] for number in range(num)]


def devkit(num: int) -> bytes:
    """The development kit: synsets with numbers of their own, which also has inner ones, and the truth."""
    rows = [(number, wnid, WORDS[wnid], 0) for number, wnid in enumerate(WNIDS, 1)]
    rows.append((len(WNIDS) + 1, "n00001740", "entity", 2))
    kinds = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    synsets = np.array(rows, kinds)[:, None]
    stream = io.BytesIO()
    savemat(stream, {"synsets": synsets})
    truth = "".join(f"{WNIDS.index(wnid) + 1}\n" for wnid in imagenet_truth(num))
    folder = "ILSVRC2012_devkit_t12/data"
    files = {
        f"{folder}/meta.mat": stream.getvalue(),
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    return tar_bytes(files, "w:gz")
