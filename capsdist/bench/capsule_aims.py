"""The rows of other kinds of capsules, trained on the embedded digits, in the table of test errors."""

from __future__ import annotations

from capsdist.bench.aims import Row, least, most

__all__ = ["CAPSULE_ROWS", "LATER_ROUTINGS"]

LATER_ROUTINGS = {
    "attention": "self-attention routing",
    "inverted": "inverted attention routing",
    "heinsen": "Heinsen's routing",
    "grouped": "grouped dynamic routing",
}
_KINDS = {
    "em": "EM routing",
    "conv": "2 layers, one convolutional",
    "deep": "4 layers",
    **LATER_ROUTINGS,
}
"""By the name of the preset: `digits_NAME`."""
_REMEDIES = {"none": "no remedy", "norm": "pose normalisation", "residual": "residual blocks"}


def _of(name: str, text: str) -> tuple[Row, Row]:
    """Return the rows of one preset: error, and seconds of the whole command."""
    what = f"digits-{name}"
    return (
        Row(f"4,000 real digits, {text} (`digits_{name}`)", most(6), what),
        Row("the same, seconds on the machine", most(600), what, "wall_s", " s"),
    )


CAPSULE_ROWS = (
    *(row for name, text in _KINDS.items() for row in _of(name, text)),
    *(
        Row(f"{depth} capsule layers, 2 epochs, {text}", None, "depth-curve", f"depth{depth}-{remedy}")
        for depth in (4, 6)
        for remedy, text in _REMEDIES.items()
    ),
    Row(
        "R2 of recognised shifts, held-out digits, mean of all capsules of an image by probability "
        "(`digits_transforming_autoencoder`)",
        least(0.8), "digits-transforming", "least_r2", "",
    ),
    Row("the same, of single capsules", None, "digits-transforming", "least_capsule_r2", ""),
)  # fmt: skip
