"""Geometry, normalisation and cutout of `Transform` against a reference of loops, on odd and oblong sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from capsdist.config import Data
from capsdist.data import Transform
from capsdist.errors import ShapeError
from transform_reference import central_part, resized, transformed

AFFINE = {"rotation": 35.0, "translation": 2.5, "scale": (0.7, 1.3), "shear": 15.0}
CASES: dict[str, dict[str, Any]] = {
    "resized": {"resize": (7, 5)},
    "resized larger": {"resize": (14, 23)},
    "random parts": {"resize": (8, 6), "resize_area": (0.2, 1.0), "resize_ratio": (0.6, 1.7)},
    "random places": {"resize": (9, 9), "resize_area": (0.5, 0.9)},
    "parts cut to the image": {"resize": (5, 12), "resize_ratio": (0.25, 4.0)},
    "resized, then cropped": {"resize": (7, 5), "crop": (4, 3), "shift": 1, "flip": True},
    "resized larger, then cropped": {"resize": (14, 15), "crop": (12, 5), "contrast": (0.5, 1.5)},
    "rotation": {"rotation": 180.0},
    "translation": {"translation": 3.7},
    "scale": {"scale": (0.5, 2.0)},
    "shear": {"shear": 40.0},
    "affine": AFFINE,
    "shift, flip, affine": {"shift": 2, "flip": True, **AFFINE},
    "cutout": {"cutout": 4},
    "cutout of odd side": {"cutout": 5},
    "normalised": {"normalise_mean": (0.4, 0.1), "normalise_std": (0.3, 0.05)},
    "all": {
        "shift": 1, "flip": True, "resize": (10, 9), "resize_area": (0.3, 1.0), "resize_ratio": (0.7, 1.4),
        "brightness": 40.0, "contrast": (0.5, 1.5), "cutout": 3, "normalise_mean": (0.5, 0.2),
        "normalise_std": (0.25, 0.5), **AFFINE,
    },
}  # fmt: skip


def images_of(seed: int, shape: tuple[int, ...], num: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, *shape), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 2**40, (num,), generator=generator)


@pytest.mark.parametrize("shape", [(2, 11, 8), (2, 9, 13)])
@pytest.mark.parametrize("name", CASES)
def test_each_image_is_that_of_the_reference(name: str, shape: tuple[int, ...]) -> None:
    options, seed = CASES[name], len(name)
    images, ids = images_of(seed, shape)
    found = Transform(**options)(images, ids, seed, 3)
    assert found.dtype == torch.float32
    pairs = zip(images.numpy(), ids.tolist(), strict=True)
    expected = np.stack([transformed(image, sample, seed, 3, options) for image, sample in pairs])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_an_image_is_the_same_in_any_batch(name: str) -> None:
    images, ids = images_of(1, (2, 10, 7), num=20)
    transform = Transform(**CASES[name])
    whole = transform(images, ids, 3, 4)
    backwards = transform(images.flip(0), ids.flip(0), 3, 4).flip(0)
    alone = torch.cat([transform(images[i : i + 1], ids[i : i + 1], 3, 4) for i in range(20)])
    epochs = transform(images, ids, 3, torch.full((20,), 4))
    for other in (backwards, alone, epochs):
        torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-5)
    random = CASES[name].keys() - {"resize", "normalise_mean", "normalise_std"}
    assert torch.equal(transform(images, ids, 3, 5), whole) == (not random)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", CASES)
def test_cpu_and_gpu_agree_to_rounding(name: str) -> None:
    images, ids = images_of(2, (2, 10, 7), num=50)
    transform = Transform(**CASES[name])
    on_gpu = transform(images.cuda(), ids.cuda(), 3, 4).cpu()
    torch.testing.assert_close(on_gpu, transform(images, ids, 3, 4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 11, 17), (1, 20, 9)])
@pytest.mark.parametrize("size", [6, (6, 9), (13, 5)])
def test_evaluation_resizes_the_largest_central_part(shape: tuple[int, ...], size: Any) -> None:
    images, ids = images_of(3, shape, num=3)
    options = {**AFFINE, "shift": 2, "flip": True, "cutout": 3, "resize_area": (0.1, 0.5), "brightness": 50.0}
    found = Transform(resize=size, train=False, **options)(images, ids, 1, 2)
    wanted = (size, size) if isinstance(size, int) else size
    part = central_part(shape[1:], wanted)
    expected = np.stack([resized(image.astype(float), part, wanted) / 255 for image in images.numpy()])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert torch.equal(Transform(resize=size)(images, ids, 1, 2), found)


@pytest.mark.parametrize("shape", [(1, 12, 12), (2, 11, 17)])
def test_evaluation_takes_the_central_crop_of_the_resized_image(shape: tuple[int, ...]) -> None:
    images, ids = images_of(4, shape, num=3)
    found = Transform(resize=(8, 9), crop=(5, 4), flip=True, train=False)(images, ids, 1, 2)
    whole = Transform(resize=(8, 9), train=False)(images, ids, 1, 2)
    assert torch.equal(found, whole[:, :, 1:6, 2:6])
    small = Transform(resize=12, crop=12, train=False)(images[:, :, :9], ids, 1, 2)  # smaller than the crop
    assert small.shape == (3, shape[0], 12, 12)


def test_the_area_of_random_parts_is_that_of_the_range() -> None:
    """Of an image that grows along its columns the mean width shows the part's."""
    ramp = (torch.arange(100)[None] + torch.zeros(100, 1)).to(torch.uint8)
    images = ramp.expand(500, 1, 100, 100).contiguous()
    found = Transform(resize=50, resize_area=(0.25, 0.25))(images, torch.arange(500), 0, 0) * 255
    widths = (found[:, 0, 0, -1] - found[:, 0, 0, 0]) / 49 * 50
    torch.testing.assert_close(widths, torch.full((500,), 50.0), rtol=1e-3, atol=1e-2)
    left = found[:, 0, 0, 0]
    assert left.min() < 3
    assert left.max() > 47


ENDS = {  # xxh3_64 of results of version 0.1; without sums, whose last bit depends on the machine
    "plain": ({}, "cc88ec5965a66c64"),
    "shift": ({"shift": 2}, "04a42db83f7d635d"),
    "crop": ({"crop": 6}, "075ecdd62e06e9f2"),
    "shift, crop, flip": ({"shift": 1, "crop": 5, "flip": True}, "8bacf9ebaac3ca18"),
    "brightness": ({"flip": True, "brightness": 63.0}, "e6053403653afe27"),
}


@pytest.mark.parametrize("name", ENDS)
def test_results_of_earlier_versions_stay(name: str) -> None:
    options, digest = ENDS[name]
    images = (torch.arange(64 * 2 * 9 * 7) * 37 % 251).to(torch.uint8).view(64, 2, 9, 7)
    found = Transform(**options)(images, torch.arange(64) * 1001, 3, 4)
    assert xxhash.xxh3_64_hexdigest(found.numpy().tobytes()) == digest


def test_a_configuration_names_every_option() -> None:
    data = Data(shift=1, resize=(9, 10), rotation=3.0, normalise_mean=(0.5,), normalise_std=(0.2,), cutout=2)
    assert Transform.of(data, train=True) == Transform(
        shift=1, resize=(9, 10), rotation=3.0, normalise_mean=(0.5,), normalise_std=(0.2,), cutout=2
    )
    assert Transform.of(Data(shift=0), train=False) == Transform(train=False)


def test_means_of_other_channels_are_refused() -> None:
    images, ids = images_of(0, (3, 5, 5))
    transform = Transform(normalise_mean=(0.5,), normalise_std=(0.5,))
    with pytest.raises(ShapeError, match=r"\[6, 3, 5, 5\], normalised by 1 means; give one a channel$"):
        transform(images, ids, 0, 0)
