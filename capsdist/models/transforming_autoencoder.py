"""The transforming auto-encoder of shifts: capsules that say where they see what, and draw it elsewhere.

Source: Hinton, Krizhevsky, Wang, "Transforming Auto-encoders" (ICANN 2011), section 2 and figure 1.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from capsdist.errors import ShapeError
from capsdist.models.capsule_network import Output
from capsdist.models.layers import check_images, check_sizes

__all__ = ["Recognised", "TransformingAutoencoder", "shift_losses"]


class Recognised(NamedTuple):
    """What K capsules see in B images: probabilities [B, K] in (0, 1), and places [B, K, 2], x and y."""

    probabilities: Tensor
    places: Tensor


class TransformingAutoencoder(nn.Module):
    """K capsules, each of which sees the whole image and draws a part of the shifted one (section 2).

    The recognition units of a capsule give the probability p that what it knows is in the image, by a
    logistic unit, and its place (x, y), by linear units. The known shift is added to the place; the
    generation units see nothing but the sum. What they draw, times p, is the capsule's contribution; the
    image is the sum of all. So the places have to follow the image, in pixels.

    Chosen here: contributions are logistic (or linear, as in other public code); with logistic ones no
    capsule can take away what another has drawn at a wrong place. Places are `place_scale` times what their
    linear units give, and generation units see places divided by it: places of that range are learned at the
    same rate as everything else. Without it p learns first to tell the position of the image, and places stay
    constant. Logistic contributions begin so small that all of them together are a dark image: brighter ones
    would teach all capsules at once that they are improbable, from which p comes back slowly.

    Shapes: images [B, C, H, W], shifts [B, 2], pixels to the right and down, or None: none -> `Output`, whose
    scores are the probabilities [B, K], its parent poses the places [B, K, 2] before the shift is added, and
    its reconstructions the shifted images, [B, C, H, W], fp32 under 16-bit autocast.
    Raises: ShapeError if a size is not a positive integer, or an argument has another shape.

    Example:
        >>> import torch
        >>> network = TransformingAutoencoder()
        >>> output = network(torch.rand(2, 1, 28, 28), torch.tensor([[3.0, 0.0], [-1.0, 2.0]]))
        >>> output.reconstructions.shape, sum(p.numel() for p in network.parameters())
        (torch.Size([2, 1, 28, 28]), 732210)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        *,
        capsules: int = 30,
        recognition_units: int = 10,
        generation_units: int = 20,
        hidden: Literal["logistic", "relu"] = "logistic",
        contribution: Literal["logistic", "linear"] = "logistic",
        place_scale: float = 3.0,
    ) -> None:
        super().__init__()
        check_sizes(capsules=capsules, recognition_units=recognition_units, generation_units=generation_units)
        channels, height, width = image_shape
        self.image_shape, self.capsules = (channels, height, width), capsules
        self.logistic, self.place_scale = contribution == "logistic", place_scale
        self.hidden = torch.sigmoid if hidden == "logistic" else torch.relu
        pixels = math.prod(image_shape)
        self.recognition = nn.Linear(pixels, capsules * recognition_units)
        self.instantiation_weight = nn.Parameter(torch.empty(capsules, recognition_units, 3))
        self.instantiation_bias = nn.Parameter(torch.empty(capsules, 3))
        self.generation_weight = nn.Parameter(torch.empty(capsules, 2, generation_units))
        self.generation_bias = nn.Parameter(torch.empty(capsules, generation_units))
        self.drawing_weight = nn.Parameter(torch.empty(capsules, generation_units, pixels))
        self.drawing_bias = nn.Parameter(torch.empty(capsules, pixels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters as PyTorch's dense layers do: uniform to 1 / sqrt(inputs) of a unit.

        But for the biases of the contributions: 0, or with logistic ones what gives pixels of 0.2 / K.
        """
        self.recognition.reset_parameters()
        pairs = (
            (self.instantiation_weight, self.instantiation_bias),
            (self.generation_weight, self.generation_bias),
            (self.drawing_weight, self.drawing_bias),
        )
        for weight, bias in pairs:
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        dark = 0.2 / self.capsules
        nn.init.constant_(self.drawing_bias, math.log(dark / (1 - dark)) if self.logistic else 0.0)

    def recognise(self, images: Tensor) -> Recognised:
        """Return probabilities and places of the capsules in `images` [B, C, H, W]."""
        check_images(images, self.image_shape)
        units = self.hidden(self.recognition(images.flatten(1))).unflatten(1, (self.capsules, -1))
        found = torch.einsum("bkr,kro->bko", units, self.instantiation_weight) + self.instantiation_bias
        return Recognised(torch.sigmoid(found[..., 0]), self.place_scale * found[..., 1:])

    def draw(self, probabilities: Tensor, places: Tensor) -> Tensor:
        """Return the images [B, C, H, W] that capsules draw: probabilities [B, K], places [B, K, 2]."""
        seen = torch.einsum("bkd,kdg->bkg", places / self.place_scale, self.generation_weight)
        units = self.hidden(seen + self.generation_bias)
        parts = torch.einsum("bkg,kgp->kbp", units, self.drawing_weight) + self.drawing_bias[:, None]
        parts = torch.sigmoid(parts) if self.logistic else parts
        return (parts * probabilities.T[..., None]).sum(0).unflatten(1, self.image_shape)

    def forward(self, images: Tensor, shifts: Tensor | None = None) -> Output:
        """Return what is seen in `images` [B, C, H, W], and them shifted by `shifts` [B, 2], None: by 0."""
        probabilities, places = self.recognise(images)
        moved = places
        if shifts is not None:
            if shifts.shape != (len(images), 2):
                raise ShapeError(f"shifts has shape {list(shifts.shape)}; give [{len(images)}, 2]")
            moved = places + shifts[:, None]
        return Output(probabilities, places, self.draw(probabilities, moved))

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"{self.capsules} capsules, images {list(self.image_shape)}"


def shift_losses(output: Output, shifted: Tensor) -> dict[str, Tensor]:
    """Return the squared error of the shifted images, summed over pixels, fp32 or wider [B] (section 2).

    output: of a `TransformingAutoencoder`; shifted: what it had to draw, [B, C, H, W].
    """
    drawn = output.reconstructions
    assert drawn is not None
    difference = drawn - shifted
    wide = torch.promote_types(difference.dtype, torch.float32)
    return {"loss": difference.to(wide).square().flatten(1).sum(1)}
