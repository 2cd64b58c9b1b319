"""The figures of the paper: their numbers against loops over single numbers, and all of them once, drawn."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from test_overview import make_run
from torch import Tensor, nn

from capsdist.analysis.decoding import OFFSETS, absent_class, chosen_images, perturbed
from capsdist.analysis.figures import draw_figures
from capsdist.analysis.mosaic import draw_mosaic
from capsdist.analysis.over_training import ITERATIONS
from capsdist.analysis.overlays import assigned, matched, segmented
from capsdist.analysis.routed import Grid, coupling_over_image, grid_of, logit_changes
from capsdist.analysis.subject import NotDrawn, ReadImages
from capsdist.config import BaselineCNNConfig, Config, Data
from capsdist.errors import ConfigError
from capsdist.models import BaselineCNN, CapsNet, ResNetCapsNet, ResNetStem
from capsdist.routing import logits_reference
from routing_cases import operands

ROOT = Path(__file__).resolve().parents[2]


def naive_logits(u, weights, iterations: int, bias=None, priors=None, none: bool = False) -> list[np.ndarray]:
    """Procedure 1, number by number: the logits [I, J] of one image before each of `iterations` passes.

    u: [I, D]; weights: [I, J, D, E]; all nested lists.
    """
    num_i, num_j, num_d, num_e = np.shape(weights)
    votes = [
        [
            [sum(u[i][d] * weights[i][j][d][e] for d in range(num_d)) for e in range(num_e)]
            for j in range(num_j)
        ]
        for i in range(num_i)
    ]
    logits = [[priors[i][j] if priors else 0.0 for j in range(num_j)] for i in range(num_i)]
    seen = []
    for _ in range(iterations):
        seen.append(np.array(logits))
        parents = [[bias[j][e] if bias else 0.0 for e in range(num_e)] for j in range(num_j)]
        for i in range(num_i):
            below = sum(math.exp(b) for b in logits[i]) + (1.0 if none else 0.0)
            for j in range(num_j):
                for e in range(num_e):
                    parents[j][e] += math.exp(logits[i][j]) / below * votes[i][j][e]
        for j in range(num_j):
            square = sum(s * s for s in parents[j])
            parents[j] = [s * math.sqrt(square) / (1 + square) for s in parents[j]]
        for i in range(num_i):
            for j in range(num_j):
                logits[i][j] += sum(votes[i][j][e] * parents[j][e] for e in range(num_e))
    return seen


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("none", [False, True])
def test_logits_of_the_reference_are_those_of_procedure_1(learned: bool, none: bool) -> None:
    given = operands((2, 7, 5, 3, 4), seed=11 + learned, bias=learned, priors=learned)
    options = {"bias": given.bias, "log_priors": given.log_priors, "none_of_the_above": none}
    found = logits_reference(given.child_poses, given.weights, 5, **options)
    lists = [None if each is None else each.tolist() for each in (given.bias, given.log_priors)]
    for image, u in enumerate(given.child_poses.tolist()):
        expected = naive_logits(u, given.weights.tolist(), 5, *lists, none)
        np.testing.assert_allclose(found[:, image], np.stack(expected), rtol=0, atol=1e-12)


def small_network(seed: int, **options) -> CapsNet:
    """A network of odd sizes, with biases and priors that are not 0."""
    torch.manual_seed(seed)
    network = CapsNet(
        (1, 13, 11), 5, conv_channels=4, conv_kernel=3, primary_types=3, primary_dim=2, primary_kernel=5,
        class_dim=7, capsule_bias=True, log_priors=True, decoder=False, **options,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.class_capsules.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network.eval()


def naive_of(network: CapsNet, images: Tensor, iterations: int) -> np.ndarray:
    """The logits [B, R, I, J] of `naive_logits` for the class capsules of `network`."""
    wide, layer = images.double(), network.double().class_capsules
    poses = network.primary_capsules(network.features(wide)).tolist()
    assert layer.bias is not None
    assert layer.log_priors is not None
    given = layer.weights.tolist(), iterations, layer.bias.tolist(), layer.log_priors.tolist()
    none = layer.routing.none_of_the_above
    return np.stack([np.stack(naive_logits(u, *given, none)) for u in poses])


@pytest.mark.parametrize("none", [False, True])
def test_figure_a1_is_the_mean_change_of_each_logit(none: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capsdist.analysis.routed._MOST_VOTES", 2 * 36 * 5 * 7)  # images two at a time
    network = small_network(3 + none, none_of_the_above=none)
    images = torch.rand(3, 1, 13, 11)
    found = logit_changes(network, images, 4)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    added = np.diff(naive_of(network, images, 5), axis=1)
    np.testing.assert_allclose(found.change, np.abs(added).mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(found.difference, np.abs(np.diff(added, axis=1)).mean((0, 2, 3)), rtol=1e-9)


def test_one_iteration_has_a_change_and_no_difference() -> None:
    found = logit_changes(small_network(1), torch.rand(2, 1, 13, 11), 1)
    assert [len(each) for each in found] == [1, 0]


@pytest.mark.parametrize("none", [False, True])
def test_coupling_lies_where_its_capsules_do(none: bool) -> None:
    network = small_network(5 + none, none_of_the_above=none, iterations=2)
    images, parents = torch.rand(3, 1, 13, 11), torch.tensor([4, 0, 2])
    found = coupling_over_image(network, images, parents)
    below = np.exp(naive_of(network, images, 2)[:, -1])  # [B, I, J]
    coupling = below / (below.sum(2, keepdims=True) + none)
    for image, parent in enumerate(parents.tolist()):
        for y in range(4):
            for x in range(3):
                types = [coupling[image, (t * 4 + y) * 3 + x, parent] for t in range(3)]
                assert found[image, y, x].item() == pytest.approx(sum(types), rel=1e-9)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (CapsNet(conv_channels=2, primary_types=2, decoder=False), Grid(6, 6, 2)),
        (CapsNet((1, 36, 30), conv_channels=2, primary_types=2, decoder=False), Grid(10, 7, 2)),
        (CapsNet((3, 24, 24), conv_channels=2, primary_types=2, padding="same"), Grid(12, 12, 2)),
        (ResNetCapsNet(stem=ResNetStem(3, (8, 8), (1, 1)), primary_types=2), Grid(8, 8, 4)),
    ],
)  # fmt: skip
def test_positions_of_primary_capsules(network: CapsNet, expected: Grid) -> None:
    assert grid_of(network) == expected


def test_positions_that_do_not_follow_the_image_are_refused() -> None:
    network = ResNetCapsNet(stem=nn.AdaptiveAvgPool2d(9), primary_types=2, norm_groups=1)
    with pytest.raises(NotDrawn, match="do not follow the size of the image"):
        grid_of(network)


def test_networks_without_capsules_have_no_logits() -> None:
    with pytest.raises(NotDrawn, match="BaselineCNN has no class capsules"):
        logit_changes(BaselineCNN((1, 9, 9), 3), torch.rand(2, 1, 9, 9))


def test_one_dimension_of_the_winner_is_moved_at_a_time() -> None:
    poses = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    moved = perturbed(poses, 1)
    assert OFFSETS == (-0.25, -0.2, -0.15, -0.1, -0.05, 0, 0.05, 0.1, 0.15, 0.2, 0.25)
    for dim in range(5):
        for place, offset in enumerate(OFFSETS):
            expected = poses.clone()
            expected[1, dim] += offset
            assert torch.equal(moved[dim, place], expected)


def test_the_absent_class_is_the_longest_of_the_others() -> None:
    poses = torch.tensor([[4.0, 3, 2, 1], [1.0, 2, 3, 4], [2.0, 4, 3, 1]])[..., None]
    found = absent_class(poses, torch.tensor([[0, 1], [3, -1], [1, 2]]), torch.tensor([0, 3, 1]))
    assert found.tolist() == [2, 2, 0]
    with pytest.raises(NotDrawn, match="all 4 classes"):
        absent_class(poses[:1], torch.tensor([[0, 1, 2]]), torch.tensor([3]))


def test_chosen_images_are_of_all_classes_and_end_with_misread_ones() -> None:
    labels = torch.tensor([0, 0, 2, 1, 2, 1, 0])
    right = torch.tensor([True, True, False, False, True, True, False])
    images = ReadImages(torch.zeros(7), torch.zeros(7), labels, labels, right)
    assert chosen_images(images, 5).tolist() == [0, 5, 4, 2, 3]
    assert chosen_images(images, 2).tolist() == [0, 2]
    assert chosen_images(images, 1).tolist() == [0]
    assert chosen_images(images, 9, num_misread=0).tolist() == [0, 5, 4, 1]
    none = replace(images, right=torch.zeros(7, dtype=torch.bool))
    assert chosen_images(none, 4).tolist() == [0, 3, 2, 1]


def test_predictions_stand_in_the_places_of_their_labels() -> None:
    predictions = torch.tensor([[3, 8], [8, 3], [5, 8], [3, 5], [8, 5], [1, 2]])
    labels = torch.tensor([[3, 8]] * 6)
    assert matched(predictions, labels).tolist() == [[3, 8], [3, 8], [5, 8], [3, 5], [5, 8], [1, 2]]


def test_pixels_have_the_colour_of_the_capsule_that_draws_them() -> None:
    rng = np.random.default_rng(4)
    images, first, second = rng.random((3, 2, 3, 5))
    first[0, 0, 0] = second[0, 0, 0] = 0
    found = segmented(images, first, second)
    for place in np.ndindex(images.shape):
        red, green = first[place], second[place]
        most = max(red, green, 1e-6)
        expected = images[place] * np.array([red / most, green / most, 0])
        np.testing.assert_allclose(found[place], expected)


def test_pixels_of_one_digit_are_counted_and_those_its_capsule_draws() -> None:
    digits, drawn = np.random.default_rng(5).random((2, 3, 2, 5, 7))
    pixels = right = 0
    for image, y, x in np.ndindex(3, 5, 7):
        lit = [digits[image, each, y, x] > 0.5 for each in range(2)]
        if lit[0] != lit[1]:
            own, other = drawn[image, lit.index(True), y, x], drawn[image, lit.index(False), y, x]
            pixels, right = pixels + 1, right + (own > other)
    assert 0 < right < pixels
    assert assigned(digits, drawn) == (pixels, right)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 9, 9, 3)])
def test_each_image_of_a_table_stands_in_its_place(shape: tuple[int, ...]) -> None:
    tiles = np.random.default_rng(6).random(shape)
    rows, columns = shape[:2]
    figure = draw_mosaic(tiles, [f"r{n}" for n in range(rows)], [f"c{n}" for n in range(columns)], "a $ b")
    [axes] = figure.axes
    canvas = np.asarray(axes.images[0].get_array())
    across, down = axes.get_xticks(), axes.get_yticks()
    for row, column in np.ndindex(rows, columns):
        left, top = across[column] - (shape[3] - 1) / 2, down[row] - (shape[2] - 1) / 2
        part = canvas[round(top) : round(top) + shape[2], round(left) : round(left) + shape[3]]
        np.testing.assert_array_equal(part, tiles[row, column])


def figures_job() -> ModuleType:
    """jobs/figures.py as a module."""
    spec = importlib.util.spec_from_file_location("figures_job", ROOT / "jobs/figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of `jobs/figures.py --smoke`."""
    to = tmp_path_factory.mktemp("figures")
    assert figures_job().main(smoke=True, to=str(to), num_images=1) == 0
    return to


def numbers(path: Path) -> dict:
    """The numbers of a figure."""
    return json.loads(path.read_text())


def test_smoke_draws_every_figure(smoke: Path) -> None:
    found = {path.relative_to(smoke).as_posix() for path in smoke.rglob("*") if path.is_file()}
    stems = {re.sub(r"figure_4_\d+", "figure_4", str(Path(path).with_suffix(""))) for path in found}
    of_digits = {"figure_3", "figure_4", "reconstructions", "coupling", "figure_a1"}
    expected = {f"smoke-{run}/{name}" for run in ("digits-r1", "digits-r3", "pairs") for name in of_digits}
    assert stems == expected | {"smoke-pairs/figure_5", "figure_a2"}
    assert len(found) == 3 * (3 * 5 + 2)
    for path in smoke.rglob("*.png"):
        assert imread(path).std() > 0.05
        assert ElementTree.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")
        note = numbers(path.with_suffix(".json"))["note"]
        assert note.startswith("Smoke: a tiny network after a few steps on few digits, multimnist: pairs of ")


def test_numbers_of_the_smoke_figures(smoke: Path) -> None:
    triples = numbers(smoke / "smoke-digits-r3/figure_3.json")
    wrong = [n for n in range(8) if triples["labels"][n] != triples["predictions"][n]]
    assert wrong == [4, 5, 6, 7]
    assert [triples["targets"][n] for n in (4, 6)] == [triples["labels"][n] for n in (4, 6)]
    assert [triples["targets"][n] for n in (5, 7)] == [triples["predictions"][n] for n in (5, 7)]
    [sheet, *_] = sorted((smoke / "smoke-digits-r3").glob("figure_4_*.json"))
    assert np.shape(numbers(sheet)["mean_pixel_change"]) == (16, 11)
    assert np.max(numbers(sheet)["mean_pixel_change"], axis=1).min() > 0
    change = numbers(smoke / "smoke-digits-r1/figure_a1.json")
    assert change["steps"] == [8, 16, 24]
    assert change["iterations_in_training"] == 1
    assert np.shape(change["logit_change"]) == (3, ITERATIONS)
    runs = numbers(smoke / "figure_a2.json")["runs"]
    assert [run["iterations"] for run in runs] == [1, 3, 3]
    assert all(len(run["steps"]) == len(run["loss"]) == 12 for run in runs)
    pairs = numbers(smoke / "smoke-pairs/figure_5.json")
    assert all(first != second for first, second in pairs["labels"])
    assert all(absent not in labels for absent, labels in zip(pairs["absent"], pairs["labels"], strict=True))
    assert np.shape(numbers(smoke / "smoke-pairs/coupling.json")["coupling"]) == (1, 10, 10)


def test_what_cannot_be_drawn_is_told_or_refused(tmp_path: Path) -> None:
    data = Data(name="made", root=str(tmp_path / "data"), shift=0)
    run = make_run(tmp_path, Config(model=BaselineCNNConfig(image_size=9, num_classes=4), data=data))
    told: list[str] = []
    to = tmp_path / "to"
    written = draw_figures([str(run)], str(to), log=told.append)
    assert [Path(path).name for path in written] == ["figure_a2.json", "figure_a2.png", "figure_a2.svg"]
    assert len(told) == 7
    assert "left out: coupling of made-up: a network of the family baseline_cnn has no capsules" in told
    with pytest.raises(NotDrawn, match=r"^figure_5 of made-up cannot be drawn: .*/test holds no pairs"):
        draw_figures([str(run)], str(to), only=["figure_5"])
    checkpoint, first = run / "step_00000040", [Path(path).read_bytes() for path in written]
    draw_figures([str(run), str(checkpoint)], str(to), only=["figure_a2"])
    assert [each["run"] for each in numbers(to / "figure_a2.json")["runs"]] == ["mnist"]
    assert [Path(path).read_bytes() for path in written] == first  # equal figures are equal files


def test_options_that_cannot_be_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        draw_figures(["a/x", "b/x"], str(tmp_path), only=["figure_9"], num_images=0)  # type: ignore[list-item]
    assert [problem.field for problem in caught.value.problems] == ["runs", "only", "num_images"]
    with pytest.raises(ConfigError, match="stand beside --smoke"):
        figures_job().main(runs=("runs/x",), smoke=True)
