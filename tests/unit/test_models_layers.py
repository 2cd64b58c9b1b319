"""Capsule layers: capsules, SAME padding, routing as configured, messages; properties with mutants."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from capsdist.errors import ShapeError
from capsdist.models import CapsNet, ClassCapsules, Decoder, PrimaryCapsules
from capsdist.models.layers import Conv2d
from capsdist.ops import squash
from capsdist.routing import route_reference


class CutFromPixels(nn.Module):
    """The mutant: its capsules are `dim` neighbouring values of one channel."""

    def __init__(self, good: PrimaryCapsules) -> None:
        super().__init__()
        self.conv, self.dim = good.conv, good.dim

    def forward(self, features: Tensor) -> Tensor:
        return squash(self.conv(features).reshape(len(features), -1, self.dim))


def children_touched_by_a_pixel(layer: nn.Module, channels: int, side: int, seed: int) -> list[int]:
    """Numbers of the capsules that change when all channels of one pixel change (for 1x1 kernels)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, channels, side, side, generator=generator)
    other = features.clone()
    other[:, :, 1, 2] += torch.randn(channels, generator=generator)
    return (layer(features) != layer(other)).any(-1)[0].nonzero().flatten().tolist()


@pytest.mark.property("channels", "a primary capsule is channels at one position")
@pytest.mark.parametrize("seed", range(3))
def test_a_capsule_is_channels_at_one_position(seed: int) -> None:
    torch.manual_seed(seed)
    layer = PrimaryCapsules(5, types=3, dim=4, kernel_size=1, stride=1)
    expected = [t * 36 + 1 * 6 + 2 for t in range(3)]  # type t at (1, 2) of 6x6
    assert children_touched_by_a_pixel(layer, 5, 6, seed) == expected


@pytest.mark.defect("channels", "capsules cut from neighbouring pixels")
@pytest.mark.parametrize("seed", range(3))
def test_capsules_cut_from_pixels_break_that_property(seed: int) -> None:
    torch.manual_seed(seed)
    mutant = CutFromPixels(PrimaryCapsules(5, types=3, dim=4, kernel_size=1, stride=1))
    assert len(children_touched_by_a_pixel(mutant, 5, 6, seed)) > 3


@pytest.mark.parametrize(("types", "dim", "side", "stride"), [(3, 8, 11, 2), (1, 5, 7, 1), (4, 1, 9, 3)])
def test_children_are_squashed_channels_in_the_documented_order(
    types: int, dim: int, side: int, stride: int
) -> None:
    layer = PrimaryCapsules(2, types, dim, kernel_size=3, stride=stride)
    features = torch.randn(2, 2, side, side - 1)
    maps = functional.conv2d(features, layer.conv.weight, layer.conv.bias, stride)
    height, width = maps.shape[2:]
    poses = layer(features)
    assert poses.shape == (2, layer.num_capsules(side, side - 1), dim)
    t, y, x = types - 1, height - 1, width // 2
    channels = [d * types + t for d in range(dim)]
    torch.testing.assert_close(
        poses[:, (t * height + y) * width + x], squash(maps[:, channels, y, x]), rtol=1e-5, atol=1e-6
    )
    assert (poses.norm(dim=-1) < 1).all()


def test_poses_lie_in_the_layout_in_which_routing_is_fast() -> None:
    poses = PrimaryCapsules(2, types=3, dim=4, kernel_size=3)(torch.randn(2, 2, 9, 9))
    assert poses.transpose(1, 2).is_contiguous()  # [B, D, I]: no copy on the way


@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(24, 9, 2), (7, 4, 3), (10, 3, 2), (9, 5, 1), (5, 1, 3)]
)
def test_same_padding_is_tensorflows(side: int, kernel: int, stride: int) -> None:
    layer = Conv2d(1, 1, kernel, stride, padding="same")
    assert layer.bias is not None
    image = torch.randn(side, side)
    out = layer(image[None, None])[0, 0] - layer.bias
    num_out = -(-side // stride)
    zeros = max((num_out - 1) * stride + kernel - side, 0) // 2  # before; one more after if odd
    row, column = num_out - 1, 0
    total = torch.tensor(0.0)
    for dy in range(kernel):
        for dx in range(kernel):
            y, x = row * stride - zeros + dy, column * stride - zeros + dx
            if 0 <= y < side and 0 <= x < side:
                total += layer.weight[0, 0, dy, dx].detach() * image[y, x]
    assert out.shape == (num_out, num_out)
    torch.testing.assert_close(out[row, column].detach(), total, rtol=1e-4, atol=1e-5)


def test_symmetric_padding_is_not_same_padding() -> None:
    layer, image = Conv2d(1, 1, 9, 2, padding="same"), torch.randn(1, 1, 24, 24)
    mutant = functional.conv2d(image, layer.weight, layer.bias, 2, padding=4)
    assert mutant.shape == layer(image).shape
    assert not torch.allclose(mutant, layer(image))


def test_unknown_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="padding='full' is unknown; use 'valid' or 'same'"):
        Conv2d(1, 1, 3, padding="full")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("iterations", "bias", "priors", "none"),
    [(1, False, False, False), (3, True, False, False), (2, True, True, True)],
)
@pytest.mark.parametrize(
    "options",
    [
        {"backend": "streamed"},
        {"backend": "streamed", "gradient": "last"},
        {"backend": "reference"},
        {"recompute": "iterations"},
    ],
)
def test_class_capsules_route_as_configured(
    iterations: int, bias: bool, priors: bool, none: bool, options: dict
) -> None:
    torch.manual_seed(iterations)
    layer = ClassCapsules(
        7, 3, 5, 4, iterations=iterations, bias=bias, log_priors=priors, none_of_the_above=none, **options
    ).double()  # fmt: skip
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    child_poses = torch.randn(3, 7, 3, dtype=torch.float64)
    expected = route_reference(
        child_poses,
        layer.weights,
        iterations,
        bias=layer.bias,
        log_priors=layer.log_priors,
        none_of_the_above=none,
        gradient=options.get("gradient", "full"),
    )
    found = layer(child_poses)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    parameters = list(layer.parameters())
    grads = [torch.autograd.grad(result.square().sum(), parameters) for result in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_weights_are_a_view_of_the_parameter_as_the_paper_writes_it() -> None:
    layer = ClassCapsules(7, 3, 5, 4)
    assert layer.weights.shape == (7, 5, 3, 4)
    assert layer.weights.data_ptr() == layer.packed_weights.data_ptr()
    assert [name for name, _ in layer.named_parameters()] == ["packed_weights"]


def copied_bytes(layer: ClassCapsules) -> int:
    """Move a layer to channels_last; how much a call then keeps of copies of its weights, in bytes."""
    layer.to(memory_format=torch.channels_last)
    kept: dict[int, int] = {}
    own = layer.packed_weights.untyped_storage().data_ptr()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() == layer.packed_weights.numel():
            kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(2, 7, 3))
    return sum(num_bytes for place, num_bytes in kept.items() if place != own)


class Restrided(ClassCapsules):
    """The mutant: it lets `to` change the layout, as every module does."""

    _apply = nn.Module._apply


def test_channels_last_is_for_images_and_leaves_weights_as_they_are() -> None:
    layer = ClassCapsules(7, 3, 5, 4)
    layer(torch.randn(2, 7, 3)).sum().backward()
    values = layer.packed_weights.detach().clone()
    assert copied_bytes(layer) == 0
    assert layer.packed_weights.grad is not None
    assert layer.packed_weights.is_contiguous()
    assert layer.packed_weights.grad.is_contiguous()
    assert torch.equal(layer.packed_weights, values)


def test_a_layer_that_lets_it_restride_them_copies_all_weights_at_every_call() -> None:
    mutant = Restrided(7, 3, 5, 4)
    assert copied_bytes(mutant) == mutant.packed_weights.nbytes


@pytest.mark.parametrize("seed", range(2))
def test_parents_have_no_order(seed: int) -> None:
    torch.manual_seed(seed)
    layer, child_poses = ClassCapsules(9, 3, 5, 4), torch.randn(2, 9, 3)
    nn.init.normal_(layer.packed_weights)
    order = torch.randperm(5)
    other = copy.deepcopy(layer)
    other.packed_weights.data = layer.packed_weights.data[order]
    torch.testing.assert_close(other(child_poses), layer(child_poses)[:, order])


def gradient_by_class(decoder: nn.Module, poses: Tensor, labels: Tensor) -> Tensor:
    """Which capsules [B, J] receive a gradient from the reconstruction."""
    poses = poses.clone().requires_grad_()
    decoder(poses, labels).square().sum().backward()
    assert poses.grad is not None
    return poses.grad.abs().sum(-1) > 0


class Unmasked(Decoder):
    """The mutant: it sees every capsule."""

    def forward(self, parent_poses: Tensor, mask_labels: Tensor) -> Tensor:
        return self.layers(parent_poses.flatten(1)).sigmoid().unflatten(1, self.image_shape)


@pytest.mark.parametrize("seed", range(3))
def test_only_the_masked_class_is_decoded_and_trained(seed: int) -> None:
    torch.manual_seed(seed)
    decoder, poses, labels = Decoder(5, 3, (2, 4, 3), (6, 7)), torch.randn(4, 5, 3), torch.randint(5, (4,))
    chosen = functional.one_hot(labels, 5).bool()
    assert (gradient_by_class(decoder, poses, labels) == chosen).all()
    others = torch.where(chosen[..., None], poses, torch.full_like(poses, torch.nan))
    assert torch.equal(decoder(poses, labels), decoder(others, labels))  # not even NaN elsewhere gets through


def test_a_decoder_without_mask_breaks_that_property() -> None:
    mutant, poses, labels = Unmasked(5, 3, (2, 4, 3), (6, 7)), torch.randn(4, 5, 3), torch.randint(5, (4,))
    assert not (gradient_by_class(mutant, poses, labels) == functional.one_hot(labels, 5).bool()).all()


def test_images_of_the_decoder_have_their_shape_and_range() -> None:
    images = Decoder(5, 3, (2, 4, 3), (6, 7))(50 * torch.randn(4, 5, 3), torch.randint(5, (4,)))
    assert images.shape == (4, 2, 4, 3)
    assert ((images >= 0) & (images <= 1)).all()


ERRORS = [
    (lambda: Conv2d(3, 4, 5)(torch.zeros(2, 1, 9, 9)), r"\[2, 1, 9, 9\]; give images \[B, 3, H, W\]"),
    (lambda: Conv2d(3, 4, 5)(torch.zeros(3, 9, 9)), r"\[3, 9, 9\]; give images \[B, 3, H, W\]"),
    (lambda: Conv2d(1, 4, 5)(torch.zeros(2, 1, 9, 4)), "9x4 pixels is smaller than the 5x5 kernel"),
    (lambda: PrimaryCapsules(3, 1, 2)(torch.zeros(2, 1, 9, 9)), r"\[2, 1, 9, 9\]; give"),
    (lambda: ClassCapsules(7, 3, 5, 4)(torch.zeros(2, 7, 4)), r"\[2, 7, 4\]; .* \[B, 7, 3\]: match num_ch"),
    (lambda: ClassCapsules(7, 3, 5, 4)(torch.zeros(7, 3)), r"\[7, 3\]; .* \[B, 7, 3\]"),
    (lambda: ClassCapsules(7, 3, 5, 4)(np.zeros((2, 7, 3))), "child_poses is of type ndarray; pass a torch"),  # pyright: ignore[reportArgumentType]
    (lambda: PrimaryCapsules(1, 1, 2)(np.zeros((2, 1, 9, 9))), "input is of type ndarray; pass a torch.Ten"),  # pyright: ignore[reportArgumentType]
    (
        lambda: Conv2d(1, 4, 5)(torch.zeros(2, 1, 9, 9, dtype=torch.uint8)),
        "dtype torch.uint8; pass images / 255",
    ),
    (lambda: ClassCapsules(0, 3, 5, 4), "num_children=0 must be a whole number of at least 1"),
    (lambda: ClassCapsules(7, 3, 5, 0), "parent_dim=0 must be a whole number of at least 1"),
    (lambda: ClassCapsules(7, 3.0, 5, 4), "child_dim=3.0 must be a whole number"),  # pyright: ignore[reportArgumentType]
    (lambda: PrimaryCapsules(2, types=0), "types=0 must be a whole number of at least 1"),
    (lambda: PrimaryCapsules(2, dim=-1), "dim=-1 must be a whole number of at least 1"),
    (lambda: PrimaryCapsules(2, stride=0), "stride=0 must be a whole number of at least 1"),
    (lambda: PrimaryCapsules(2, kernel_size=(9, 5)), r"kernel_size=\(9, 5\) must be a whole number"),  # pyright: ignore[reportArgumentType]
    (lambda: Conv2d(1, 0, 3), "out_channels=0 must be a whole number of at least 1"),
    (
        lambda: Decoder(5, 3, (1, 2, 2))(torch.zeros(2, 5, 4), torch.zeros(2, dtype=torch.int64)),
        r"\[2, 5, 4\]; .* \[B, 5, 3\]: match num_classes",
    ),
    (
        lambda: Decoder(5, 3, (1, 2, 2))(torch.zeros(2, 5, 3), torch.zeros(3, dtype=torch.int64)),
        r"mask_labels has shape \[3\]; give \[2\]",
    ),
    (
        lambda: Decoder(5, 3, (1, 2, 2))(torch.zeros(2, 5, 3), torch.tensor([4, 5])),
        r"mask_labels\[1\] = 5 is no class of 5; pass numbers from 0 to 4",
    ),
    (
        lambda: Decoder(5, 3, (1, 2, 2))(torch.zeros(2, 5, 3), [4, 3]),  # pyright: ignore[reportArgumentType]
        "mask_labels is of type list; pass a torch.Tensor",
    ),
    (
        lambda: CapsNet()(torch.zeros(1, 1, 28, 28), [4]),  # pyright: ignore[reportArgumentType]
        "labels is of type list; pass a torch.Tensor",
    ),
    (lambda: CapsNet()(np.zeros((1, 1, 28, 28))), "images is of type ndarray; pass a torch.Tensor"),  # pyright: ignore[reportArgumentType]
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_wrong_shapes_are_refused_in_one_line(call, message: str) -> None:
    with pytest.raises(ShapeError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"iterations": 0}, "iterations=0 must be a whole number of at least 1; the paper has 3"),
        ({"iterations": 2.5}, "iterations=2.5 must be a whole number of at least 1; the paper has 3"),
        ({"iterations": "3"}, "iterations='3' must be a whole number of at least 1; the paper has 3"),
        ({"bias": "no"}, "bias='no' must be True or False"),
        ({"log_priors": torch.zeros(2)}, r"log_priors=tensor\(.*\) must be True or False"),
        ({"none_of_the_above": "no"}, "none_of_the_above='no' must be True or False"),
        ({"gradient": "Last"}, "gradient='Last' is unknown; choose 'full' or 'last'"),
        ({"recompute": "x"}, "recompute='x' is unknown; choose 'streamed', 'iterations' or 'none'"),
        ({"backend": "bogus"}, "backend='bogus' is no backend of routing; choose 'auto', 'fused', "),
    ],
)
def test_wrong_options_are_refused_when_a_layer_is_built(option: dict, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ClassCapsules(7, 3, 5, 4, **option)


@pytest.mark.parametrize(("layer", "text"), [
    (Conv2d(1, 2, 3, 2, "same"), "Conv2d(1, 2, kernel_size=3, stride=2, padding='same')"),
    (PrimaryCapsules(1, 2, 3), "types=2, dim=3"),
    (ClassCapsules(7, 3, 5, 4, iterations=2), "7 x 3D -> 5 x 4D, iterations=2, bias=False"),
    (Decoder(5, 3, (1, 2, 2)), "5 x 3D -> image [1, 2, 2]"),
])  # fmt: skip
def test_repr_says_what_a_layer_is(layer: nn.Module, text: str) -> None:
    assert text in repr(layer)
