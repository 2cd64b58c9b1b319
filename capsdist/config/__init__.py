"""Configuration: schema, rules and presets. Imports neither torch nor ray."""

from capsdist.config.conv_capsnet import ConvCapsNetConfig, ConvRouting
from capsdist.config.models import (
    BaselineCNNConfig,
    CapsNetConfig,
    Family,
    Loss,
    NetworkConfig,
    NoOptions,
    PoolingCNNConfig,
    Routing,
)
from capsdist.config.presets import PRESETS, get_preset
from capsdist.config.resnet_capsnet import ResNetCapsNetConfig
from capsdist.config.rules import problems, validate
from capsdist.config.schema import Config, Data, Launch, Optim, Train
from capsdist.config.sections import Section
from capsdist.config.shapes import image_shape
from capsdist.config.values import with_values

__all__ = [
    "PRESETS", "BaselineCNNConfig", "CapsNetConfig", "Config", "ConvCapsNetConfig", "ConvRouting", "Data",
    "Family", "Launch", "Loss", "NetworkConfig", "NoOptions", "Optim", "PoolingCNNConfig",
    "ResNetCapsNetConfig", "Routing", "Section", "Train", "get_preset", "image_shape", "problems", "validate",
    "with_values",
]  # fmt: skip
