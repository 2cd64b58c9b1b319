"""Configuration: schema, rules and presets. Imports neither torch nor ray."""

from capsdist.config.models import (
    BaselineCNNConfig,
    CapsNetConfig,
    Family,
    Loss,
    NetworkConfig,
    NoOptions,
    Routing,
)
from capsdist.config.presets import PRESETS, get_preset
from capsdist.config.resnet_capsnet import ResNetCapsNetConfig
from capsdist.config.rules import problems, validate
from capsdist.config.schema import Config, Data, Launch, Optim, Train
from capsdist.config.sections import Section
from capsdist.config.shapes import image_shape

__all__ = [
    "PRESETS", "BaselineCNNConfig", "CapsNetConfig", "Config", "Data", "Family", "Launch", "Loss",
    "NetworkConfig", "NoOptions", "Optim", "ResNetCapsNetConfig", "Routing", "Section", "Train", "get_preset",
    "image_shape", "problems", "validate",
]  # fmt: skip
