"""Rotated, scaled, sheared and shifted test digits; and whether poses tell how a digit was transformed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from capsdist.claims.experiment import Claim, Experiment, Values, mean_of
from capsdist.claims.subject import Images, Subject, error_percent
from capsdist.data.transforms.geometry import affine
from capsdist.data.transforms.random_numbers import Draw, Draws

__all__ = [
    "EQUIVARIANCE", "PARAMETERS", "TRANSFORMATIONS", "r_squared", "randomly_transformed", "transformed",
]  # fmt: skip

PARAMETERS = ("rotation", "scale", "shear", "shift down", "shift right")
"""What is known of each transformed image, in this order: degrees, factor, degrees, pixels, pixels."""
_TURN, _SHEAR, _MOVE, _SCALE = 30.0, 20.0, 3.0, (0.8, 1.2)  # ranges of the random maps
_SEED = 0  # of the random maps
_NUM_FEATURES = 16  # as many numbers of the CNN as a class capsule has dimensions
_ERROR = {"error_percent": "error in percent"}


@dataclass(frozen=True)
class _Ends(Draws):
    """Draws the ends of each range in turn, in place of random numbers."""

    def between(self, draw: Draw, low: float, high: float) -> Tensor:
        """Return float64 [b]: `high` for even samples, `low` for odd ones; of moves down, each for two."""
        number = self.sample_ids // 2 if draw == Draw.TRANSLATION_Y else self.sample_ids
        ends = torch.tensor([high, low], dtype=torch.float64, device=number.device)
        return ends[number % 2]


def transformed(
    pixels: Tensor,
    *,
    rotation: float = 0.0,
    scale: float = 1.0,
    shear: float = 0.0,
    translation: float = 0.0,
) -> Tensor:
    """Return images [N, C, H, W], every one transformed by exactly so much; zeros come in from outside.

    Even images are turned clockwise, sheared and moved by plus, odd ones by minus this: degrees, degrees,
    pixels; moves go along both diagonals. See `capsdist.data.transforms.geometry.affine`.
    """
    draws = _Ends(torch.arange(len(pixels)), 0, 0)
    factors = scale, scale
    return affine(pixels, draws, rotation=rotation, translation=translation, scale=factors, shear=shear)


def randomly_transformed(pixels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return images [N, C, H, W], each under a random affine map, and its `PARAMETERS`, float64 [N, 5].

    Up to 30 degrees of rotation, 3 pixels of movement, 20 degrees of shear either way; factors 0.8 to 1.2.
    """
    draws = Draws(torch.arange(len(pixels)), seed, 0)
    known = (
        draws.between(Draw.ROTATION, -_TURN, _TURN),
        draws.between(Draw.SCALE, *_SCALE),
        draws.between(Draw.SHEAR, -_SHEAR, _SHEAR),
        draws.between(Draw.TRANSLATION_Y, -_MOVE, _MOVE),
        draws.between(Draw.TRANSLATION_X, -_MOVE, _MOVE),
    )
    images = affine(pixels, draws, rotation=_TURN, translation=_MOVE, scale=_SCALE, shear=_SHEAR)
    return images, torch.stack(known, 1)


def r_squared(features: Tensor, parameters: Tensor, classes: Tensor) -> list[float]:
    """Return the coefficient of determination of linear regressions, on held-out images, for each parameter.

    A regression with intercept for each class, fitted by least squares to every second image of it and tested
    on the others: 1 - (sum of squared residuals of all classes) / (sum of squares about the held-out mean of
    the class). 1: exact; 0: no better than the mean, or no class has two held-out images; it may be negative.

    Shapes: features [N, F], parameters [N, P], classes int64 [N] -> P numbers.
    """
    residual, total = (torch.zeros(parameters.shape[1], dtype=torch.float64) for _ in range(2))
    for number in classes.unique():
        rows = (classes == number).nonzero().flatten()
        inputs = torch.cat([features[rows].double(), torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        wanted = parameters[rows].double()
        fit, test = slice(0, None, 2), slice(1, None, 2)
        if len(rows) < 4:
            continue
        # gelsd: least norm where there are fewer images than features, or features that never change
        solution = torch.linalg.lstsq(inputs[fit], wanted[fit], driver="gelsd").solution
        residual += (wanted[test] - inputs[test] @ solution).square().sum(0)
        total += (wanted[test] - wanted[test].mean(0)).square().sum(0)
    return torch.where(total > 0, 1 - residual / total, 0.0).tolist()


def principal(features: Tensor, num: int) -> Tensor:
    """Return features [N, F] as their first `num` principal components, float64 [N, num]."""
    centred = features.double() - features.double().mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:num]
    return centred @ directions.T


def _equivariance(subject: Subject, images: Images) -> Values:
    pixels, known = randomly_transformed(images.pixels, _SEED)
    features = subject.features(pixels, images.labels)
    if features.shape[1] > _NUM_FEATURES:
        features = principal(features, _NUM_FEATURES)
    return {"r_squared": r_squared(features, known, images.labels)}


def _family(
    name: str, title: str, condition: str, amounts: tuple[float, ...], verb: str,
    of: Callable[[Tensor, float], Tensor],
) -> Experiment:  # fmt: skip
    """Return an experiment whose first amount leaves the images as they are."""

    def measure(subject: Subject, images: Images) -> Values:
        errors = [
            error_percent(subject, Images(of(images.pixels, amount), images.labels)) for amount in amounts
        ]
        return {"error_percent": errors}

    claim = Claim(
        f"A capsule network reads {verb} digits, without having seen such, with fewer errors than a CNN",
        "error in percent, mean of the transformed conditions,",
        mean_of("error_percent", 1),
        "lower",
    )
    return Experiment(name, title, condition, amounts, _ERROR, (claim,), measure)


TRANSFORMATIONS = (
    _family(
        "rotation", "Rotated digits", "rotation either way, degrees", (0.0, 10.0, 20.0, 30.0, 45.0, 60.0),
        "rotated", lambda pixels, amount: transformed(pixels, rotation=amount),
    ),
    _family(
        "scale", "Scaled digits", "factor of the size", (1.0, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3),
        "scaled", lambda pixels, amount: transformed(pixels, scale=amount),
    ),
    _family(
        "shear", "Sheared digits", "shear either way, degrees", (0.0, 10.0, 20.0, 30.0, 40.0),
        "sheared", lambda pixels, amount: transformed(pixels, shear=amount),
    ),
    _family(
        "shift", "Shifted digits", "movement along both sides, pixels", (0.0, 1.0, 2.0, 3.0, 4.0),
        "shifted", lambda pixels, amount: transformed(pixels, translation=amount),
    ),
)  # fmt: skip

EQUIVARIANCE = Experiment(
    "equivariance",
    "What a linear regression reads of the transformation, of held-out images",
    "parameter of a random affine map",
    PARAMETERS,
    {"r_squared": "R2"},
    (
        Claim(
            "The pose of the right capsule tells linearly how a digit was transformed",
            "R2, mean of the parameters,", mean_of("r_squared"), "higher", than=0.0,
        ),
        Claim(
            "The pose of the right capsule tells it better than 16 principal components of a CNN's last "
            "hidden layer",
            "R2, mean of the parameters,", mean_of("r_squared"), "higher",
        ),
    ),
    _equivariance,
    {
        "seed": _SEED, "rotation": _TURN, "shear": _SHEAR, "shift": _MOVE, "scale": list(_SCALE),
        "principal_components": _NUM_FEATURES,
    },
)  # fmt: skip
