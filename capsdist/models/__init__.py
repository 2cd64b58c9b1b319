"""Networks and layers: ordinary torch modules. `registry` and `build` read configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsdist.lazy import load_on_use

if TYPE_CHECKING:
    from capsdist.models.baseline_cnn import BaselineCNN
    from capsdist.models.build import build_model
    from capsdist.models.capsnet import CapsNet
    from capsdist.models.capsule_network import CapsuleNetwork, Output
    from capsdist.models.decoder import Decoder
    from capsdist.models.layers import ClassCapsules, PackedCapsules, PrimaryCapsules
    from capsdist.models.pooling_cnn import PoolingCNN
    from capsdist.models.resnet import ResNetStem
    from capsdist.models.resnet_capsnet import ResNetCapsNet

__all__ = [
    "BaselineCNN", "CapsNet", "CapsuleNetwork", "ClassCapsules", "Decoder", "Output", "PackedCapsules",
    "PoolingCNN", "PrimaryCapsules", "ResNetCapsNet", "ResNetStem", "build_model",
]  # fmt: skip

# Names load on first use: `registry` is read without torch.
__getattr__ = load_on_use(
    __name__,
    {
        "BaselineCNN": ".baseline_cnn",
        "CapsNet": ".capsnet",
        "CapsuleNetwork": ".capsule_network",
        "ClassCapsules": ".layers",
        "Decoder": ".decoder",
        "Output": ".capsule_network",
        "PackedCapsules": ".layers",
        "PoolingCNN": ".pooling_cnn",
        "PrimaryCapsules": ".layers",
        "ResNetCapsNet": ".resnet_capsnet",
        "ResNetStem": ".resnet",
        "build_model": ".build",
    },
)
