"""What a stem by import path costs: traced on torch's meta device, whose tensors have only shapes."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from capsdist.config.cost import Bytes, LayerCost, Numbers
from capsdist.config.resnet_capsnet import ResNetCapsNetConfig
from capsdist.config.shapes import image_shape
from capsdist.errors import CapsdistError, ConfigError, Problem
from capsdist.models.own_stem import own_stem
from capsdist.models.stem_network import feature_shape

__all__ = ["traced_stem"]

_IMAGES = 2


def traced_stem(model: ResNetCapsNetConfig) -> tuple[list[LayerCost], int, tuple[int, int]]:
    """Return the cost of the stem of `model` as one layer, and channels and (H, W) of its features.

    Parameters, FLOP and saved numbers are those of a forward and a backward pass; saved floats count as
    `narrow`. Its peaks are an estimate: two of its largest result forward, three backward.

    Raises:
        ConfigError: as `own_stem`, or it cannot be built or run on the meta device. ShapeError: its features
            are not [B, C', H', W'].
    """
    try:
        with torch.device("meta"):
            stem = own_stem(model)
            feature_shape(stem, image_shape(model))
        return _traced(stem, image_shape(model), frozen=model.stem_frozen)
    except CapsdistError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        rule = f"cannot be priced: it does not run on torch's meta device ({reason})"
        fix = "measure a few steps with capsdist train ... --train.dry-run 5"
        raise ConfigError([Problem("model.stem", model.stem, rule, fix)]) from error


def _traced(
    stem: nn.Module, shape: tuple[int, int, int], *, frozen: bool
) -> tuple[list[LayerCost], int, tuple[int, int]]:
    sizes, saved, hold = [0], {}, []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        sizes.extend(leaf.nbytes for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    def pack(tensor: Tensor) -> Tensor:
        hold.append(tensor)  # no place is used twice then
        saved[_place(tensor)] = tensor
        return tensor

    for module in stem.modules():
        module.register_forward_hook(note)
    parameters = list(stem.parameters())
    stem.train(not frozen).requires_grad_(not frozen)
    images = torch.empty(_IMAGES, *shape, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with FlopCounterMode(display=False) as forward:
            features = stem(images)
        channels, height, width = features.shape[1:]
        with FlopCounterMode(display=False) as backward:
            if features.requires_grad:
                features.sum().backward()
    for tensor in (images, features, *parameters, *stem.buffers()):  # the next layer keeps the features
        saved.pop(_place(tensor), None)
    floats = [each for each in saved.values() if each.is_floating_point()]
    others = [each for each in saved.values() if not each.is_floating_point()]
    largest = max(sizes) // _IMAGES
    layer = LayerCost(
        "stem",
        parameters=sum(each.numel() for each in parameters),
        forward_flop=forward.get_total_flops() // _IMAGES,
        backward_flop=backward.get_total_flops() // _IMAGES,
        saved=Numbers(_numbers(floats), _numbers(others)),
        forward_peaks=(Bytes(2 * largest),),
        backward_peaks=(Bytes(3 * largest, max((each.nbytes for each in parameters), default=0)),),
        cast=sum(each.numel() for each in parameters if each.dim() > 1),
        cast_input=prod(shape),
    )
    return [layer], channels, (height, width)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _numbers(tensors: list[Tensor]) -> int:
    """Return their size for one image, in numbers of fp32."""
    return sum(each.untyped_storage().nbytes() for each in tensors) // (4 * _IMAGES)
