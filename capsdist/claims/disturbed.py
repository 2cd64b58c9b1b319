"""Noise, and images that are changed against the network by the sign of its gradient (FGSM)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from capsdist.claims.experiment import Claim, Experiment, Values, mean_of
from capsdist.claims.subject import Images, Subject, error_percent

__all__ = ["FGSM", "NOISE", "attacked", "noisy"]

_SERIES = {"error_percent": "error in percent"}
_SEED = 0  # of the noise
_DEVIATIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_EPSILONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)


def noisy(pixels: Tensor, deviation: float, seed: int = 0) -> Tensor:
    """Return images in [0, 1] with Gaussian noise of this standard deviation, clipped to [0, 1].

    The noise is the same for every network, and for every deviation but for its factor.
    """
    generator = torch.Generator().manual_seed(seed)
    return (pixels + deviation * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


def attacked(pixels: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    """Return images in [0, 1] moved by `epsilon` along the sign of the gradient of the loss, clipped.

    Source: Goodfellow, Shlens, Szegedy 2015, section 4, the fast gradient sign method.
    """
    return (pixels + epsilon * gradient.sign()).clamp(0, 1)


def _measured(
    subject: Subject, images: Images, changed: Callable[[Tensor, float], Tensor], amounts: tuple[float, ...]
) -> Values:
    errors = [
        error_percent(subject, Images(changed(images.pixels, amount), images.labels)) for amount in amounts
    ]
    return {"error_percent": errors}


def _noise(subject: Subject, images: Images) -> Values:
    def changed(pixels: Tensor, deviation: float) -> Tensor:
        return noisy(pixels, deviation, _SEED)

    return _measured(subject, images, changed, _DEVIATIONS)


def _fgsm(subject: Subject, images: Images) -> Values:
    gradient = subject.loss_gradient(images.pixels, images.labels)

    def changed(pixels: Tensor, epsilon: float) -> Tensor:
        return attacked(pixels, gradient, epsilon)

    return _measured(subject, images, changed, _EPSILONS)


NOISE = Experiment(
    "noise",
    "Gaussian noise",
    "standard deviation, of pixels in [0, 1]",
    _DEVIATIONS,
    _SERIES,
    (
        Claim(
            "A capsule network reads noisy digits with fewer errors than a CNN",
            "error in percent, mean of the noisy conditions,", mean_of("error_percent", 1), "lower",
        ),
    ),
    _noise,
    {"seed": _SEED},
)  # fmt: skip

FGSM = Experiment(
    "fgsm",
    "Digits changed against each network by the sign of its own gradient (FGSM)",
    "change of each pixel, of [0, 1]",
    _EPSILONS,
    _SERIES,
    (
        Claim(
            "A capsule network errs less than a CNN when each is attacked by its own gradient (FGSM)",
            "error in percent, mean of the attacked conditions,", mean_of("error_percent", 1), "lower",
        ),
    ),
    _fgsm,
)  # fmt: skip
