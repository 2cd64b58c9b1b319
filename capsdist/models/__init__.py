"""Networks and layers: ordinary torch modules. `registry` and `build` read configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsdist.lazy import load_on_use

if TYPE_CHECKING:
    from capsdist.models.baseline_cnn import BaselineCNN
    from capsdist.models.build import build_model
    from capsdist.models.capsnet import CapsNet
    from capsdist.models.capsule_network import CapsuleNetwork, Output
    from capsdist.models.conv_capsnet import ConvCapsNet
    from capsdist.models.conv_capsules import ConvCapsules, SharedClassCapsules
    from capsdist.models.decoder import Decoder
    from capsdist.models.em_capsnet import EMCapsNet
    from capsdist.models.inverted_layers import InvertedCapsules
    from capsdist.models.later_layers import (
        AttentionCapsules,
        FullyConnectedCapsules,
        GroupedCapsules,
        HeinsenCapsules,
    )
    from capsdist.models.layers import ClassCapsules, PackedCapsules, PrimaryCapsules
    from capsdist.models.matrix_layers import MatrixClassCapsules, MatrixConvCapsules, PrimaryMatrixCapsules
    from capsdist.models.pooling_cnn import PoolingCNN
    from capsdist.models.resnet import ResNetStem
    from capsdist.models.resnet_capsnet import ResNetCapsNet
    from capsdist.models.transforming_autoencoder import TransformingAutoencoder

__all__ = [
    "AttentionCapsules", "BaselineCNN", "CapsNet", "CapsuleNetwork", "ClassCapsules", "ConvCapsNet",
    "ConvCapsules", "Decoder", "EMCapsNet", "FullyConnectedCapsules", "GroupedCapsules",
    "HeinsenCapsules", "InvertedCapsules", "MatrixClassCapsules", "MatrixConvCapsules", "Output",
    "PackedCapsules", "PoolingCNN", "PrimaryCapsules", "PrimaryMatrixCapsules", "ResNetCapsNet",
    "ResNetStem", "SharedClassCapsules", "TransformingAutoencoder", "build_model",
]  # fmt: skip

# Names load on first use: `registry` is read without torch.
__getattr__ = load_on_use(
    __name__,
    {
        "AttentionCapsules": ".later_layers",
        "BaselineCNN": ".baseline_cnn",
        "CapsNet": ".capsnet",
        "CapsuleNetwork": ".capsule_network",
        "ClassCapsules": ".layers",
        "ConvCapsNet": ".conv_capsnet",
        "ConvCapsules": ".conv_capsules",
        "Decoder": ".decoder",
        "EMCapsNet": ".em_capsnet",
        "FullyConnectedCapsules": ".later_layers",
        "GroupedCapsules": ".later_layers",
        "HeinsenCapsules": ".later_layers",
        "InvertedCapsules": ".inverted_layers",
        "MatrixClassCapsules": ".matrix_layers",
        "MatrixConvCapsules": ".matrix_layers",
        "Output": ".capsule_network",
        "PackedCapsules": ".layers",
        "PoolingCNN": ".pooling_cnn",
        "PrimaryCapsules": ".layers",
        "PrimaryMatrixCapsules": ".matrix_layers",
        "ResNetCapsNet": ".resnet_capsnet",
        "ResNetStem": ".resnet",
        "SharedClassCapsules": ".conv_capsules",
        "TransformingAutoencoder": ".transforming_autoencoder",
        "build_model": ".build",
    },
)
