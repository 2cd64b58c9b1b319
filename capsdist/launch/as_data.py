"""A network that fits its data: channels, size, classes and labels of the images, from their index."""

from __future__ import annotations

from capsdist.config import Config
from capsdist.data.format.head import read_head
from capsdist.launch.preflight import packing_remedy
from capsdist.storage import join

__all__ = ["fitted"]


def fitted(config: Config) -> Config:
    """Return `config` with the network that the training split asks for, if `model.from_data` is set.

    `image_size` is what cropping or resizing leaves of the images.

    Raises:
        DataError: the split is not packed, or its index cannot be used.
    """
    if not config.model.from_data or config.data.reader != "packed":  # without an index: `problems` says so
        return config
    data = config.data
    place = join(data.root, data.name, data.train_split)
    head = read_head(place, packing_remedy(config, data.train_split))
    channels, height, width = head.image_shape
    found = {
        "in_channels": channels,
        "image_size": data.crop or data.resize or (height if height == width else (height, width)),
        "num_classes": max(2, len(head.classes)),
        "num_labels": head.num_labels,
    }
    return config.model_copy(update={"model": config.model.model_copy(update=found)})
