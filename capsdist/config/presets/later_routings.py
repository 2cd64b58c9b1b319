"""A quarter-size network on the embedded digits with each of the later routing algorithms."""

from __future__ import annotations

from capsdist.config.models import CapsNetConfig, Routing
from capsdist.config.schema import Config, Data, Optim, Train


def _digits(name: str, routing: Routing, **model: object) -> Config:
    """Return the preset called digits-`name`: 0.7 M parameters and a decoder, minutes on 2 CPU cores."""
    return Config(
        model=CapsNetConfig(conv_channels=64, primary_types=8, **model),  # pyright: ignore[reportArgumentType]
        routing=routing,
        data=Data(name="digits", train_split="train_part", validation_split="validation"),
        optim=Optim(decay_rate=0.85, decay_steps=63),
        train=Train(name=f"digits-{name}", num_workers=2, epochs=10, global_batch_size=64),
    )


def digits_attention() -> Config:
    """Self-attention routing of Efficient-CapsNet (Mazzia 2021) on 3,600 + 400 real digits."""
    return _digits("attention", Routing(algorithm="attention"), log_priors=True)


def digits_inverted() -> Config:
    """Inverted dot-product attention routing (Tsai 2020), 3 iterations, on 3,600 + 400 real digits."""
    return _digits("inverted", Routing(algorithm="inverted"))


def digits_heinsen() -> Config:
    """Heinsen's routing (2019), 3 iterations, on 3,600 + 400 real digits."""
    return _digits("heinsen", Routing(algorithm="heinsen"))


def digits_grouped() -> Config:
    """Dynamic routing of each primary type by itself (DC-CapsNet, Yuan 2025) on 3,600 + 400 real digits."""
    return _digits("grouped", Routing(algorithm="grouped", groups=8), log_priors=True)


PRESETS = (digits_attention, digits_inverted, digits_heinsen, digits_grouped)
