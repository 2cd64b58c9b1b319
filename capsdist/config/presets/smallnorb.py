"""smallNORB (paper, section 7): both cameras as channels, 96x96 resized to 48x48, crops of 32x32.

A pixel of the smaller image is the mean of four; TensorFlow 1, of the authors' code, takes every second one.

The novel viewpoints are those of Hinton, Sabour, Frosst 2018, section 5.1, which has no figure for this
network. They validate on the test toys in the views of training.
"""

from __future__ import annotations

from capsdist.config.em_capsnet import EMCapsNetConfig, EMRouting, SpreadLoss
from capsdist.config.presets.mnist import mnist_official, mnist_paper
from capsdist.config.schema import Config
from capsdist.config.values import with_values

_TOYS = {
    "model.in_channels": 2,
    "model.image_size": 32,
    "model.num_classes": 5,
    "data.name": "smallnorb",
    "data.shift": 0,
    "data.resize": 48,
    "data.crop": 32,
    "train.name": "smallnorb",
    "train.epochs": 200,
}


def smallnorb_paper() -> Config:
    """The MNIST network on smallNORB; paper: 2.7 % test error."""
    return with_values(mnist_paper(), _TOYS)


def smallnorb_official() -> Config:
    """The authors' code: brightness, contrast, standardised, so no decoder; 300,000 steps as on MNIST."""
    return with_values(
        mnist_official(),
        {
            **_TOYS,
            "model.decoder": False,  # a sigmoid cannot draw standardised pixels
            "data.brightness": 63.0,
            "data.contrast": (0.2, 1.8),  # about the mean of the crop; there, of the whole image
            "data.standardise": True,
            "train.name": "smallnorb-official",
            "train.epochs": 1581,
            "train.max_steps": 300_000,
        },
    )


def smallnorb_em() -> Config:
    """EM routing, A = B = C = D = 32: 317,194 parameters (published: 310 K); paper: 1.8 % test error."""
    return _matrix_capsules("smallnorb-em", {})


def smallnorb_em_small() -> Config:
    """EM routing, A=64, B=8, C=D=16: 68,754 parameters (published: 68 K); paper: 2.2 % test error."""
    sizes = {"model.conv_channels": 64, "model.primary_types": 8, "model.capsule_types": (16, 16)}
    return _matrix_capsules("smallnorb-em-small", sizes)


def _matrix_capsules(name: str, sizes: dict[str, object]) -> Config:
    """Return the network of Hinton, Sabour, Frosst 2018, section 4.1; images as there, but for noise."""
    values = {
        **_TOYS,
        "data.brightness": 32.0,
        "data.contrast": (0.5, 1.5),
        "data.standardise": True,
        "optim.learning_rate": 3e-3,
        "optim.decay_steps": 20_000,
        "train.name": name,
        "train.global_batch_size": 64,
        "train.epochs": 950,  # ours: 360,810 steps
    }
    return with_values(
        Config(model=EMCapsNetConfig(), routing=EMRouting(), loss=SpreadLoss()), {**values, **sizes}
    )


def smallnorb_azimuth_paper() -> Config:
    """Trained on a third of the azimuths, tested on the others; no figure in the paper for this network."""
    return _novel("azimuth")


def smallnorb_elevation_paper() -> Config:
    """Trained on the lowest three elevations, tested on the others; no figure for this network."""
    return _novel("elevation")


def _novel(factor: str) -> Config:
    values = {
        "data.name": f"smallnorb_{factor}",
        "data.validation_split": "validation",
        "train.name": f"smallnorb-{factor}",
        "train.epochs": 600,  # as many steps: a third of the images
        "train.keep_best": 1,
    }
    return with_values(smallnorb_paper(), values)


PRESETS = (
    smallnorb_paper, smallnorb_official, smallnorb_em, smallnorb_em_small, smallnorb_azimuth_paper,
    smallnorb_elevation_paper,
)  # fmt: skip
