"""A network that fits its data: channels, size, classes and labels of the images, from their index."""

from __future__ import annotations

from capsdist.config import Config
from capsdist.config.models import CapsuleConfig
from capsdist.data.format.head import read_head
from capsdist.errors import ConfigError, DataError, Problem
from capsdist.launch.preflight import packing_remedy
from capsdist.storage import join

__all__ = ["fitted", "fitted_if_packed"]


def fitted(config: Config) -> Config:
    """Return `config` with the network that the training split asks for, if `model.from_data` is set.

    `image_size` is what cropping or resizing leaves of the images. A decoder draws each label by itself where
    the split has the image of each, which recipes have, unless images are mixed.

    Raises:
        DataError: the split is not packed, or its index cannot be used.
        ConfigError: its images have different sizes, and `data.decode_size` is not set.
    """
    if not config.model.from_data or config.data.reader != "packed":  # without an index: `problems` says so
        return config
    data = config.data
    place = join(data.root, data.name, data.train_split)
    head = read_head(place, packing_remedy(config, data.train_split))
    size = data.crop or data.resize or data.decode_size or head.image_size
    if size is None:
        rule = f"images of {place} have different sizes"
        fix = "set it to what they are decoded to, --data.decode-size 64 for example"
        raise ConfigError([Problem("data.decode_size", 0, rule, fix)])
    found = {
        "in_channels": head.num_channels,
        "image_size": size,
        "num_classes": max(2, len(head.classes)),
        "num_labels": head.num_labels,
    }
    if isinstance(config.model, CapsuleConfig):
        found["decoder_separate"] = head.base is not None and not data.mixup
    return config.model_copy(update={"model": config.model.model_copy(update=found)})


def fitted_if_packed(config: Config) -> Config:
    """Return `config` as `fitted` does, or as it is where the index of its training split cannot be read."""
    try:
        return fitted(config)
    except DataError:
        return config
