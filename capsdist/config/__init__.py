"""Configuration: schema, rules and presets. Imports neither torch nor ray."""

from capsdist.config.presets import PRESETS, get_preset
from capsdist.config.rules import problems, validate
from capsdist.config.schema import Cluster, Config, Data, Loss, Model, Optim, Routing, Train

__all__ = [
    "PRESETS",
    "Cluster",
    "Config",
    "Data",
    "Loss",
    "Model",
    "Optim",
    "Routing",
    "Train",
    "get_preset",
    "problems",
    "validate",
]
