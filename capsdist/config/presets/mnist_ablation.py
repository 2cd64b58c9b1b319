"""The differences between `mnist_paper` and `mnist_official`, one preset each.

`mnist_ablation_<difference>` is `mnist_paper` with one difference; all of them together are `mnist_official`.
One may harm where another is missing: with the official initialisation alone primary capsules start near
length 1, and the factor 1 / 32 alone makes them short.
"""

from __future__ import annotations

from collections.abc import Callable

from capsdist.config.presets.mnist import mnist_paper
from capsdist.config.schema import Config
from capsdist.config.values import with_values

__all__ = ["ABLATIONS", "DIFFERENCES", "PRESETS"]

DIFFERENCES: dict[str, tuple[str, object, str]] = {
    "primary_coupling": ("model.primary_coupling", True, "primary capsules squash conv / 32 + bias"),
    "capsule_bias": ("model.capsule_bias", True, "class capsules have biases, which start at 0.1"),
    "initialisation": (
        "model.initialisation",
        "truncated_normal",
        "truncated normal start, biases of convolutions and decoder 0.1",
    ),
    "margin_reduction": ("loss.margin_reduction", "official", "20 times the weight of the reconstruction"),
    "last_batch": ("data.last_batch", "carry", "all steps have 128 images"),
    "epochs": ("train.epochs", 640, "640 epochs, 300,000 steps"),
    "precision": ("train.precision", "fp32", "fp32 on every device"),
}
"""Field, official value, and words for each difference."""

# Both sources train with TensorFlow's Adam; public re-implementations do not.
_OTHERS: dict[str, tuple[str, object, str]] = {
    "epsilon_placement": ("optim.epsilon_placement", "pytorch", "PyTorch's epsilon, in neither source"),
}


def _ablation(name: str, field: str, value: object, words: str) -> Callable[[], Config]:
    def preset() -> Config:
        run = f"mnist-ablation-{name.replace('_', '-')}"
        return with_values(mnist_paper(), {field: value, "train.name": run})

    preset.__name__, preset.__doc__ = f"mnist_ablation_{name}", f"mnist_paper, but {words}."
    return preset


PRESETS = tuple(_ablation(name, *row) for name, row in (DIFFERENCES | _OTHERS).items())
ABLATIONS = tuple(preset.__name__ for preset in PRESETS)
"""Their names."""
