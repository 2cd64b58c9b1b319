"""What the experiments measure, against naive computations image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from capsdist.claims.arranged import partners, scrambled, separation, side_by_side, smaller
from capsdist.claims.disturbed import attacked, noisy
from capsdist.claims.experiment import CAPSNET, Claim, finding, mean_of, verdict_of
from capsdist.claims.matched import TOLERANCE, matched_baseline, size_of
from capsdist.claims.subject import Images, Subject, error_percent
from capsdist.claims.transformed import principal, r_squared, randomly_transformed, transformed
from capsdist.config import BaselineCNNConfig, CapsNetConfig, Config, get_preset, with_values
from capsdist.config.models import NoOptions, Routing
from capsdist.errors import ConfigError, ShapeError
from capsdist.models import build_model
from capsdist.models.counts import num_parameters

SIZES = {
    "mini": {"model.conv_channels": 64, "model.primary_types": 8},
    "full": {},
    "small": {"model.conv_channels": 6, "model.primary_types": 1, "model.decoder": False},
    "toys": {
        "model.in_channels": 2,
        "model.image_size": 32,
        "model.num_classes": 5,
        "model.conv_channels": 9,
    },
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def pixels_of(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.random(shape, dtype=np.float32))


# ---- matched parameters


@pytest.mark.parametrize("size", SIZES)
def test_matched_networks_are_built_with_equally_many_parameters(size: str) -> None:
    capsnet = with_values(get_preset("mnist_paper"), SIZES[size])
    model = matched_baseline(capsnet.model, capsnet.routing)
    own, other = num_parameters(capsnet), num_parameters(Config(model=model))
    assert abs(own - other) <= TOLERANCE * own
    assert (size_of(capsnet.model, capsnet.routing).parameters, size_of(model, NoOptions()).parameters) == (
        own, other,
    )  # fmt: skip
    assert (model.image_size, model.in_channels) == (capsnet.model.image_size, capsnet.model.in_channels)


def test_the_paper_s_own_size_is_found_again() -> None:
    assert matched_baseline(BaselineCNNConfig(), NoOptions()) == BaselineCNNConfig()


def test_a_network_that_is_too_small_is_refused() -> None:
    tiny = CapsNetConfig(
        conv_channels=1, conv_kernel=1, primary_types=1, primary_dim=1, primary_kernel=28, class_dim=1,
        decoder=False,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"model='capsnet': has [\d,]+ parameters, of which no baseline"):
        matched_baseline(tiny, Routing())


# ---- scrambled parts


@pytest.mark.parametrize("grid", [2, 3, 6])
def test_scrambled_images_have_the_same_patches_in_other_places(rng: np.random.Generator, grid: int) -> None:
    images = pixels_of(rng, 40, 2, 12, 18)
    found = scrambled(images, grid)
    height, width = 12 // grid, 18 // grid

    def patches(image: torch.Tensor) -> list[bytes]:
        return [
            image[:, row : row + height, column : column + width].numpy().tobytes()
            for row in range(0, 12, height)
            for column in range(0, 18, width)
        ]

    orders = set()
    for before, after in zip(images, found, strict=True):
        old, new = patches(before), patches(after)
        assert sorted(old) == sorted(new)
        assert old != new
        orders.add(tuple(old.index(each) for each in new))
    assert len(orders) > 5
    assert torch.equal(found, scrambled(images, grid))


def test_one_patch_is_the_image_and_uneven_grids_are_refused(rng: np.random.Generator) -> None:
    images = pixels_of(rng, 3, 1, 9, 9)
    assert torch.equal(scrambled(images, 1), images)
    with pytest.raises(ShapeError, match="images are 9 x 9, which 2 patches a side do not divide"):
        scrambled(images, 2)


def test_separation_counts_pairs(rng: np.random.Generator) -> None:
    intact, other = (torch.from_numpy(rng.integers(0, 9, num) / 8) for num in (23, 31))
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in intact for b in other]
    assert separation(intact, other) == pytest.approx(np.mean(pairs))
    assert separation(torch.tensor([0.9, 0.8]), torch.tensor([0.1])) == 1


# ---- crowding


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
def test_two_digits_side_by_side(rng: np.random.Generator, distance: int) -> None:
    first, second = pixels_of(rng, 3, 2, 9, 11), pixels_of(rng, 3, 2, 9, 11)
    pairs, alone = side_by_side(first, second, distance)
    expected, single = np.zeros((3, 2, 9, 11)), np.zeros((3, 2, 9, 11))
    left = -(distance // 2)
    for image, shift, also in ((first, left, True), (second, left + distance, False)):
        for column in range(11):
            if 0 <= column + shift < 11:
                expected[..., column + shift] += image[..., column].numpy()
                if also:
                    single[..., column + shift] += image[..., column].numpy()
    np.testing.assert_allclose(pairs, np.minimum(expected, 1), rtol=1e-6)
    np.testing.assert_allclose(alone, single, rtol=1e-6)


def test_partners_are_the_next_of_the_class(rng: np.random.Generator) -> None:
    labels = torch.from_numpy(np.append(rng.integers(0, 4, 30), 7))
    found = partners(labels)
    for number, label in enumerate(labels.tolist()):
        others = [*range(number + 1, len(labels)), *range(number + 1)]
        assert found[number] == next(other for other in others if labels[other] == label)


def test_smaller_digits_keep_their_brightness_and_place(rng: np.random.Generator) -> None:
    images = torch.zeros(2, 1, 28, 28)
    images[:, :, 8:20, 8:20] = 0.5
    found = smaller(images)
    assert found[..., :5, :].abs().sum() == found[..., -5:].abs().sum() == 0
    assert found[0, 0, 14, 14] == pytest.approx(0.5)
    assert found.sum().item() == pytest.approx(images.sum().item() * (18 / 28) ** 2, rel=0.1)


# ---- transformations


def test_even_images_move_down_right_and_odd_ones_back(rng: np.random.Generator) -> None:
    images = torch.zeros(8, 1, 9, 9)
    images[:, :, 4, 4] = 1
    found = transformed(images, translation=2)
    places = [tuple(divmod(int(image.argmax()), 9)) for image in found]
    assert places == [(6, 6), (6, 2), (2, 6), (2, 2)] * 2


def test_rotation_by_a_right_angle_is_exact(rng: np.random.Generator) -> None:
    images = pixels_of(rng, 4, 1, 8, 8)
    found = transformed(images, rotation=90)
    for number, image in enumerate(images):
        turned = torch.rot90(image, -1 if number % 2 == 0 else 1, (1, 2))  # even ones clockwise
        torch.testing.assert_close(found[number], turned, rtol=0, atol=1e-5)


def test_known_parameters_undo_the_transformation(rng: np.random.Generator) -> None:
    grid = torch.linspace(-1, 1, 41)
    image = torch.exp(-((grid[:, None] - 0.1) ** 2) / 0.05 - ((grid[None] + 0.05) ** 2) / 0.02)
    images = image.expand(5, 1, 41, 41).contiguous()
    found, known = randomly_transformed(images, seed=int(rng.integers(1000)))
    for number, (turn, factor, shear, down, right) in enumerate(known.tolist()):
        # the point (x, y) of the image goes to this place: sheared, scaled, turned clockwise, moved
        y, x = (torch.stack(torch.meshgrid(grid, grid, indexing="ij")) * 20).double()
        sheared = (x + y * np.tan(np.radians(shear))) * factor
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        to_x, to_y = sheared * cos - y * factor * sin + right, sheared * sin + y * factor * cos + down
        weights = images[number, 0].double()
        mass = found[number, 0].double()
        centre = [float((weights * to).sum() / weights.sum()) for to in (to_y, to_x)]
        moved = [float((mass * at).sum() / mass.sum()) for at in (y, x)]
        assert moved == pytest.approx(centre, abs=0.1)


# ---- equivariance


def test_r_squared_is_that_of_regressions_by_class(rng: np.random.Generator) -> None:
    num, width = 120, 4
    features, parameters = rng.normal(size=(num, width)), rng.normal(size=(num, 2))
    classes = rng.integers(0, 3, num)
    parameters[:, 0] += features @ rng.normal(size=width) * (classes + 1)
    residual, total = np.zeros(2), np.zeros(2)
    for number in range(3):
        rows = [row for row in range(num) if classes[row] == number]
        fit, test = rows[::2], rows[1::2]
        design = np.column_stack([features, np.ones(num)])
        weights = np.linalg.pinv(design[fit]) @ parameters[fit]
        residual += ((parameters[test] - design[test] @ weights) ** 2).sum(0)
        total += ((parameters[test] - parameters[test].mean(0)) ** 2).sum(0)
    given = (torch.from_numpy(each) for each in (features, parameters, classes))
    assert r_squared(*given) == pytest.approx((1 - residual / total).tolist())


def test_r_squared_of_exact_and_of_unrelated_features(rng: np.random.Generator) -> None:
    features, classes = torch.from_numpy(rng.normal(size=(400, 3))), torch.zeros(400, dtype=torch.int64)
    exact = features @ torch.ones(3, 1, dtype=torch.float64) + 5
    assert r_squared(features, exact, classes) == pytest.approx([1])
    assert r_squared(features, torch.from_numpy(rng.normal(size=(400, 1))), classes)[0] < 0.2


def test_principal_components_keep_most_of_what_varies(rng: np.random.Generator) -> None:
    hidden = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 7)) + 3
    found = principal(torch.from_numpy(hidden), 2)
    distances = [torch.cdist(each, each) for each in (found, torch.from_numpy(hidden))]
    torch.testing.assert_close(*distances, rtol=0, atol=1e-5)


# ---- noise, gradients


def test_noise_is_the_same_for_all_networks_and_clipped(rng: np.random.Generator) -> None:
    images = torch.full((50, 1, 9, 9), 0.5)
    one, more = noisy(images, 0.05), noisy(images, 0.1)
    torch.testing.assert_close((more - images), 2 * (one - images))
    assert (one - images).std().item() == pytest.approx(0.05, rel=0.1)
    assert noisy(images, 5.0).aminmax() == (0, 1)


@pytest.mark.parametrize("kind", ["capsnet", "baseline_cnn"])
def test_the_attack_follows_the_sign_of_the_loss(rng: np.random.Generator, kind: str) -> None:
    subject = subject_of(kind)
    images, labels = pixels_of(rng, 3, 1, 9, 9), torch.from_numpy(rng.integers(0, 3, 3))
    gradient = subject.loss_gradient(images, labels)
    step = 1e-6
    for number in range(3):
        for place in rng.choice(81, 6, replace=False):
            losses = []
            for sign in (1, -1):
                changed = images[number : number + 1].double().clone()
                changed.view(-1)[place] += sign * step
                losses.append(naive_loss(subject, changed, int(labels[number])))
            slope = (losses[0] - losses[1]) / (2 * step)
            assert gradient[number].flatten()[place].item() == pytest.approx(slope, rel=1e-2, abs=1e-5)
    found = attacked(images, gradient, 0.03)
    moved = images + torch.where(gradient > 0, 0.03, torch.where(gradient < 0, -0.03, 0.0))
    torch.testing.assert_close(found, moved.clamp(0, 1))


def naive_loss(subject: Subject, image: torch.Tensor, label: int) -> float:
    """The loss by the paper's formula, in float64, by a network of the same weights."""
    scores = subject.network.double()(image).scores[0]
    subject.network.float()
    if isinstance(subject.config.model, BaselineCNNConfig):
        return -functional.log_softmax(scores, 0)[label].item()
    terms = [
        max(0.0, 0.9 - length) ** 2 if number == label else 0.5 * max(0.0, length - 0.1) ** 2
        for number, length in enumerate(scores.tolist())
    ]
    return sum(terms)


def subject_of(kind: str) -> Subject:
    model: CapsNetConfig | BaselineCNNConfig
    if kind == "capsnet":
        model = CapsNetConfig(
            image_size=9, num_classes=3, conv_channels=2, conv_kernel=3, primary_types=2, primary_dim=2,
            primary_kernel=3, class_dim=2, decoder_hidden=(3, 3),
        )  # fmt: skip
    else:
        model = BaselineCNNConfig(image_size=9, num_classes=3, conv_channels=(2, 3, 2), dense_units=(5, 4))
    config = Config(model=model)
    return Subject(config, build_model(config.model, config.routing).eval(), torch.device("cpu"))


def test_confidences_features_and_errors(rng: np.random.Generator) -> None:
    images, labels = pixels_of(rng, 7, 1, 9, 9), torch.from_numpy(rng.integers(0, 3, 7))
    for kind in ("capsnet", "baseline_cnn"):
        subject = subject_of(kind)
        with torch.no_grad():
            rows = [subject.network(image[None]) for image in images]
        features = subject.features(images, labels)
        for number, output in enumerate(rows):
            wanted = output.scores if kind == "capsnet" else output.scores.softmax(1)
            torch.testing.assert_close(subject.confidences(images)[number], wanted[0])
            if kind == "capsnet":
                torch.testing.assert_close(features[number], output.parent_poses[0, labels[number]])
            else:
                torch.testing.assert_close(subject.network.layers[-1](features)[number], output.scores[0])
        wrong = sum(int(output.scores.argmax()) != label for output, label in zip(rows, labels, strict=True))
        assert error_percent(subject, Images(images, labels)) == pytest.approx(100 * wrong / 7)


# ---- verdicts


@pytest.mark.parametrize(
    ("interval", "lower", "higher"),
    [
        ((-2.0, -3.0, -1.0), "supported", "contradicted"),
        ((2.0, 1.0, 3.0), "contradicted", "supported"),
        ((1.0, -0.5, 2.5), "not supported by these data", "not supported by these data"),
        ((0.5, 0.5, 0.5), "not supported by these data", "not supported by these data"),
        ((0.0, 0.0, 0.0), "not supported by these data", "not supported by these data"),
        (None, "not supported by these data", "not supported by these data"),
    ],
)
def test_verdicts(interval: tuple[float, ...] | None, lower: str, higher: str) -> None:
    assert (verdict_of(interval, "lower"), verdict_of(interval, "higher")) == (lower, higher)


def test_a_finding_is_the_paired_interval_over_seeds() -> None:
    claim = Claim("A errs less", "error", mean_of("error", 1), "lower")
    measured = {CAPSNET: [{"error": [9, 1, 2]}, {"error": [9, 2, 4]}], "baseline": [{"error": [0, 3, 3]}] * 2}
    found = finding(claim, measured)
    differences = [1.5 - 3, 3 - 3]
    half = 12.706 * np.std(differences, ddof=1) / np.sqrt(2)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.75, -0.75 - half, -0.75 + half), rel=1e-3)
    assert found.sentence.startswith(
        "A errs less: not supported by these data; error 2.25 against the CNN's 3,"
    )
    alone = finding(Claim("B", "error", mean_of("error"), "higher", than=1.0), measured)
    assert (alone.verdict, alone.mean) == ("not supported by these data", pytest.approx(3.5))
    one = finding(claim, {name: rows[:1] for name, rows in measured.items()})
    assert (one.low, one.verdict) == (None, "not supported by these data")
