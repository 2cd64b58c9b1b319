"""The rows of the comparison of routing algorithms in the table of test errors."""

from __future__ import annotations

from capsdist.bench.aims import Row

__all__ = ["ROUTING_ROWS"]

_NAMES = {
    "dynamic": "dynamic routing, r=3",
    "em": "EM routing",
    "attention": "self-attention (Efficient-CapsNet)",
    "inverted": "inverted attention, r=3",
    "heinsen": "Heinsen, r=3",
    "grouped": "grouped dynamic routing",
    "average": "control: uniform coupling",
    "fully_connected": "control: fully connected",
}
ROUTING_ROWS = tuple(
    Row(
        f"4,000 digits, networks of 68,000 parameters, {text}", None, "compare-routings", name, " %", "mean",
        "figures.seeds",
    )
    for name, text in _NAMES.items()
)  # fmt: skip
