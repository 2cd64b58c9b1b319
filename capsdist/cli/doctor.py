"""Report unhealthy capsule layers of a run, and suggest options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from capsdist.console import DONE, announced, log
from capsdist.errors import ConfigError, Problem

if TYPE_CHECKING:
    from rich.table import Table

    from capsdist.models.health import LayerHealth

__all__ = ["doctor"]

_WIDTH = 110  # characters of the table: a narrow terminal breaks its lines, but loses nothing


def doctor(
    run: Annotated[str, tyro.conf.Positional],
    split: str | None = None,
    best: bool = False,
    num_images: int = 128,
) -> int:
    """Report unhealthy capsule layers of a run, and suggest options.

    Runs a forward and a backward pass of some images, on the CPU, in evaluation mode. A table has a line for
    each layer. live: capsules at least 0.1 long in at least one image; length: the mean, of matrix capsules
    that of activations; saturated: lengths above 0.95 (of primary capsules an illness only where the
    gradient has vanished too); entropy: of the coupling of children over its largest
    value, 1 where they are undecided; share: the largest share of all children that one parent receives;
    change: how far the last iteration moves a logit; gradient: norm of the loss' gradient of the weights.
    Layers that no children are routed to leave entropy, share and change blank.

    Args:
        run: Path or s3:// URL of a run, its newest verified checkpoint, or of a checkpoint.
        split: Path or s3:// URL of the split, e.g. /data/digits/test; default: the test split of the run.
        best: Of a run, the checkpoint with the lowest validated error_percent.
        num_images: Images of the split, the first ones.
    """
    if num_images < 1:
        raise ConfigError([Problem("num_images", num_images, "must be at least 1", "leave it out for 128")])
    with announced(log, f"reading {run}"):  # and importing torch, which takes seconds
        from rich.console import Console

        from capsdist.analysis.doctor import diagnose, examine
        from capsdist.analysis.subject import open_subject
        from capsdist.config.rules import check_classifies
    subject = open_subject(run, split, best=best, limit=num_images, log=log)
    check_classifies(subject.config, "the loss whose gradients are examined")
    layers = examine(subject)
    images = f"the first {len(subject.images.seen):,} images of {subject.split}"
    print(f"{subject.source}: {subject.config.model.kind}, examined on {images}")
    Console(width=max(_WIDTH, Console().width)).print(_table(layers))
    findings = diagnose(layers, subject.config)
    for finding in findings:
        print(finding)
    if not layers:
        print("the network has no capsule layers that can be examined")
    elif not findings:
        print(
            "healthy: no capsule layer is starved, saturated, undecided or collapsed, and gradients reach all"
        )
    print("capsdist doctor --help explains the columns")
    return DONE


def _table(layers: Sequence[LayerHealth]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("layer", no_wrap=True)
    for name in ("capsules", "live %", "length", "saturated %", "entropy", "share", "change", "gradient"):
        table.add_column(name, justify="right")
    for layer in layers:
        live = "" if layer.live_percent is None else f"{layer.live_percent:.1f}"
        numbers = (
            layer.mean_length,
            layer.saturated_percent,
            layer.relative_entropy,
            layer.largest_share,
            layer.logit_change,
            layer.grad_norm,
        )
        shown = ("" if number is None else f"{number:.3g}" for number in numbers)
        table.add_row(layer.name, f"{layer.num_capsules:,}", live, *shown)
    return table
