"""Transforms: properties of every change, with mutants; of the numbers: test_transform_numbers.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_transform_numbers import look_independent, looks_uniform

from capsdist.data import Transform
from capsdist.data.transforms import uniform
from capsdist.errors import ShapeError

MASK = (1 << 64) - 1
SEEDS = [0, 1, 2**31 - 1]


def make_images(seed: int, num: int = 64, shape=(2, 9, 7)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (num, *shape), dtype=torch.uint8, generator=generator)
    return images, torch.randperm(10 * num, generator=generator)[:num]


# ---- every image for itself

TRANSFORMS = {
    "shift": {"shift": 2},
    "crop": {"crop": 5},
    "shift, crop, flip": {"shift": 1, "crop": 6, "flip": True},
    "colours": {"brightness": 63.0, "contrast": (0.2, 1.8)},
    "official": {"crop": 6, "flip": True, "brightness": 63.0, "contrast": (0.2, 1.8), "standardise": True},
}


def depends_on_nothing_else(transform, images: torch.Tensor, ids: torch.Tensor) -> bool:
    """Property: an image's result is the same in any batch, in any order, alone."""
    whole = transform(images, ids, 3, 4)
    backwards = transform(images.flip(0), ids.flip(0), 3, 4).flip(0)
    parts = torch.cat(
        [transform(images[part], ids[part], 3, 4) for part in (slice(0, 1), slice(1, 30), slice(30, None))]
    )
    return torch.allclose(whole, backwards, atol=1e-5) and torch.allclose(whole, parts, atol=1e-5)


@pytest.mark.parametrize("options", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("seed", range(2))
def test_an_image_depends_on_its_id_only(options, seed):
    assert depends_on_nothing_else(Transform(**options), *make_images(seed))


@pytest.mark.parametrize("options", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
def test_seed_and_epoch_change_the_images(options, change):
    images, ids = make_images(7)
    arguments = {"seed": 0, "epoch": 0}
    first = Transform(**options)(images, ids, **arguments)
    second = Transform(**options)(images, ids, **(arguments | change))
    assert not torch.equal(first, second)
    assert torch.equal(first, Transform(**options)(images, ids, **arguments))


@pytest.mark.parametrize("options", TRANSFORMS.values(), ids=TRANSFORMS)
def test_each_image_of_a_step_may_have_its_own_epoch(options):
    images, ids = make_images(3)
    epochs = torch.arange(len(ids)) % 3
    mixed = Transform(**options)(images, ids, 5, epochs)
    for epoch in range(3):
        alone = Transform(**options)(images, ids, 5, epoch)
        torch.testing.assert_close(mixed[epochs == epoch], alone[epochs == epoch])


def twin_one_shift_a_batch(images, sample_ids, seed, epoch):
    """Mutant: the whole batch is moved alike."""
    generator = torch.Generator().manual_seed(hash((seed, epoch, int(sample_ids[0]))) % 2**31)
    top, left = torch.randint(0, 5, (2,), generator=generator).tolist()
    padded = F.pad(images, [2] * 4)
    return padded[:, :, top : top + images.shape[2], left : left + images.shape[3]].float() / 255


def test_mutant_one_shift_a_batch_depends_on_the_batch():
    assert not depends_on_nothing_else(twin_one_shift_a_batch, *make_images(0))


# ---- shift


def shifts_of(images: torch.Tensor, moved: torch.Tensor, limit: int) -> list[tuple[int, int]] | None:
    """Return every image's (down, right) in pixels, or None if one is not a shift with zeros outside."""
    height, width = images.shape[2:]
    found = []
    for image, result in zip(images.float() / 255, moved, strict=True):
        padded = F.pad(image, [limit] * 4)
        matches = [
            (limit - top, limit - left)
            for top in range(2 * limit + 1)
            for left in range(2 * limit + 1)
            if torch.equal(padded[:, top : top + height, left : left + width], result)
        ]
        if len(matches) != 1:
            return None
        found.append(matches[0])
    return found


@pytest.mark.property("shift", "each image has a shift of its own")
@pytest.mark.parametrize("limit", [1, 2])
def test_shift_moves_each_image_by_itself(limit):
    images, ids = make_images(limit, num=300)
    found = shifts_of(images, Transform(shift=limit)(images, ids, 5, 6), limit)
    assert found is not None
    counts = [found.count((y, x)) for y in range(-limit, limit + 1) for x in range(-limit, limit + 1)]
    expected = 300 / len(counts)
    assert sum((count - expected) ** 2 / expected for count in counts) < 70  # 24 degrees of freedom: p < 1e-5
    assert min(counts) > 0


def test_mutant_rolled_images_have_no_zeros_outside():
    images, _ = make_images(3)
    assert shifts_of(images, torch.roll(images, (1, 1), (2, 3)).float() / 255, 2) is None


@pytest.mark.defect("shift", "one random shift for a whole batch")
def test_mutant_one_shift_a_batch_moves_all_alike():
    images, ids = make_images(4)
    found = shifts_of(images, twin_one_shift_a_batch(images, ids, 0, 0), 2)
    assert found is not None
    assert len(set(found)) == 1


# ---- crop and flip


def test_random_crops_are_windows_of_the_image():
    images, ids = make_images(5, num=200)
    crops = Transform(crop=5)(images, ids, 1, 2)
    places = set()
    for image, crop in zip(images.float() / 255, crops, strict=True):
        windows = image.unfold(1, 5, 1).unfold(2, 5, 1).permute(1, 2, 0, 3, 4)
        matches = (windows == crop).flatten(2).all(2).nonzero().tolist()
        assert len(matches) == 1
        places.add(tuple(matches[0]))
    assert places == {(top, left) for top in range(5) for left in range(3)}


def test_flip_mirrors_half_of_the_images():
    images, ids = make_images(6, num=400)
    flipped = Transform(flip=True)(images, ids, 1, 2)
    plain = images.float() / 255
    same = (flipped == plain).flatten(1).all(1)
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250  # 5 sigma


def test_crop_and_flip_are_drawn_apart():
    """The choice of the window tells nothing about the mirroring."""
    ids = torch.arange(20_000)
    assert look_independent(uniform(ids, 3, 0, 0), uniform(ids, 4, 0, 0))


# ---- colours, against the formulas of TensorFlow's functions


def test_brightness_adds_grey_levels():
    images, ids = make_images(8, num=500)
    images = images // 4 + 90  # nothing reaches the ends, where values are clamped
    change = Transform(brightness=60.0)(images, ids, 1, 2) * 255 - images
    assert torch.allclose(change.amax((1, 2, 3)), change.amin((1, 2, 3)), atol=1e-3)
    levels = change.mean((1, 2, 3))
    assert looks_uniform((levels + 60) / 120)


def test_contrast_scales_around_the_mean_of_a_channel():
    images, ids = make_images(9, num=500)
    images = images // 8 + 100
    mean = images.float().mean((2, 3), keepdim=True)
    result = Transform(contrast=(0.5, 2.0))(images, ids, 1, 2) * 255
    assert torch.allclose(result.mean((2, 3), keepdim=True), mean, atol=1e-2)
    factors = (result - mean).flatten(1).norm(dim=1) / (images - mean).flatten(1).norm(dim=1)
    assert torch.allclose(result, (images - mean) * factors[:, None, None, None] + mean, atol=1e-2)
    assert looks_uniform((factors - 0.5) / 1.5)


@pytest.mark.parametrize("options", [{"brightness": 200.0}, {"contrast": (3.0, 9.0)}])
def test_pixels_stay_between_0_and_1(options):
    images, ids = make_images(10)
    result = Transform(**options)(images, ids, 1, 2)
    assert result.min() == 0
    assert result.max() == 1


def reference_standardised(images: torch.Tensor) -> torch.Tensor:
    """tf.image.per_image_standardization, image by image in float64."""
    rows = []
    for image in images.double():
        floor = image.numel() ** -0.5
        rows.append((image - image.mean()) / max(float(image.std(correction=0)), floor))
    return torch.stack(rows)


@pytest.mark.parametrize("train", [True, False])
def test_standardisation_is_tensorflows(train):
    images, ids = make_images(11, num=20)
    result = Transform(standardise=True, train=train)(images, ids, 1, 2)
    assert torch.allclose(result.double(), reference_standardised(images), atol=1e-5)


def test_a_flat_image_stays_finite_and_its_mutant_does_not():
    """The adjusted deviation is at least 1/sqrt(n); dividing by the plain one gives NaN."""
    images = torch.full((2, 3, 4, 4), 77, dtype=torch.uint8)
    assert torch.equal(
        Transform(standardise=True, train=False)(images, torch.arange(2), 0, 0), torch.zeros(2, 3, 4, 4)
    )
    grey = images.float()
    assert ((grey - grey.mean()) / grey.std(correction=0)).isnan().all()


def test_the_floor_of_the_deviation_counts_grey_levels():
    """One pixel a grey level brighter among 2,500: the deviation is 1/50, just the floor 1/sqrt(n)."""
    images = torch.zeros(1, 1, 50, 50, dtype=torch.uint8)
    images[0, 0, 10, 10] = 1
    result = Transform(standardise=True, train=False)(images, torch.zeros(1, dtype=torch.int64), 0, 0)
    assert torch.allclose(result.double(), reference_standardised(images), atol=1e-5)
    assert result.max() > 49


def test_official_order_of_changes():
    """Crop, flip, brightness, contrast, standardisation: standardised last, so mean 0 and deviation 1."""
    images, ids = make_images(12, shape=(3, 12, 12))
    result = Transform(**(TRANSFORMS["official"] | {"crop": 8}))(images, ids, 1, 2)
    assert result.shape == (64, 3, 8, 8)
    assert torch.allclose(result.mean((1, 2, 3)), torch.zeros(64), atol=1e-5)
    assert torch.allclose(result.std((1, 2, 3), correction=0), torch.ones(64), atol=1e-4)


# ---- testing mode, shapes


@pytest.mark.parametrize(("size", "crop", "top"), [(32, 24, 4), (9, 4, 2), (8, 8, 0)])
def test_testing_takes_the_central_crop(size, crop, top):
    images, ids = make_images(13, shape=(3, size, size))
    options = {"shift": 2, "flip": True, "brightness": 63.0, "contrast": (0.2, 1.8)}
    expected = images[:, :, top : top + crop, top : top + crop].float() / 255
    assert torch.equal(Transform(crop=crop, train=False, **options)(images, ids, 1, 2), expected)


@pytest.mark.parametrize("train", [True, False])
def test_without_options_pixels_are_only_converted(train):
    images, ids = make_images(14)
    result = Transform(train=train)(images, ids, 1, 2)
    assert result.dtype == torch.float32
    assert torch.equal(result, images.float() / 255)
    assert torch.equal(images, make_images(14)[0])  # the stored images are not written to


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 9, 9), r"images are torch.float32 \[2, 1, 9, 9\]; give uint8 \[b,C,H,W\]"),
        (torch.zeros(2, 9, 9, dtype=torch.uint8), r"images are torch.uint8 \[2, 9, 9\]; give uint8"),
        (
            torch.zeros(2, 1, 9, 5, dtype=torch.uint8),
            r"images are \[2, 1, 9, 5\], smaller than the crop 6; lower",
        ),
    ],
)
def test_wrong_images_are_refused(images, message):
    with pytest.raises(ShapeError, match=message):
        Transform(crop=6)(images, torch.arange(2), 0, 0)
