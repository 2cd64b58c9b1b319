"""Images of the user's own: a network that takes its size from them."""

from __future__ import annotations

from capsdist.config.models import CapsNetConfig
from capsdist.config.schema import Config, Data, Train


def capsnet_small() -> Config:
    """A small capsule network that fits the images of any packed set; minutes on 2 CPU cores."""
    return Config(
        model=CapsNetConfig(from_data=True, conv_channels=32, primary_types=8, decoder_hidden=(128, 256)),
        data=Data(name="mine", validation_split="validation"),
        train=Train(name="mine", num_workers=2, epochs=20, global_batch_size=32),
    )


PRESETS = (capsnet_small,)
