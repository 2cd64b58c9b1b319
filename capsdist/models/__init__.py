"""Networks and layers: ordinary torch modules. Only `build` and `counts` read configurations."""

from capsdist.models.baseline_cnn import BaselineCNN
from capsdist.models.build import build_model
from capsdist.models.capsnet import CapsNet, Output
from capsdist.models.decoder import Decoder
from capsdist.models.layers import ClassCapsules, PrimaryCapsules

__all__ = ["BaselineCNN", "CapsNet", "ClassCapsules", "Decoder", "Output", "PrimaryCapsules", "build_model"]
