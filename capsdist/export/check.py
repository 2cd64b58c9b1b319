"""Compare exported files with capsdist's own prediction, before anybody gets them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from capsdist.errors import RunError
from capsdist.export.format import Read
from capsdist.export.subject import Outputs, Subject

__all__ = ["BATCHES", "check_equal"]

BATCHES = (1, 2, 5)
"""Numbers of images that are compared."""
_SHARE, _LEAST = 1e-3, 1e-6  # of an output's largest value: fp32, summed in another order


def check_equal(subject: Subject, read: Read) -> float:
    """Return the largest difference between what `read` computes and what capsdist does, over all outputs.

    Images are noise, one is black, one white; the decoder draws random classes.

    Raises:
        RunError: an output is missing or of another shape, or differs by more than 1e-6 and a thousandth of
            its largest value; names it.
    """
    largest = 0.0
    for images, labels in _probes(subject):
        expected, found = subject.outputs(images, labels), read(images, labels)
        for name, one, other in zip(Outputs._fields, expected, found, strict=True):
            largest = max(largest, _difference(f"{name} of {len(images)} images", one, other))
    return largest


def _difference(name: str, expected: Tensor | None, found: Tensor | None) -> float:
    shapes = [None if each is None else list(each.shape) for each in (expected, found)]
    if shapes[0] != shapes[1]:
        raise _differs(f"{name} have shape {shapes[1]}, capsdist's own {shapes[0]}")
    if expected is None or found is None:
        return 0.0
    difference = float((found - expected).abs().max())
    if not difference <= _LEAST + _SHARE * float(expected.abs().max()):  # NaN too
        raise _differs(f"{name} differ by up to {difference:.3g} from capsdist's own")
    return difference


def _differs(reason: str) -> RunError:
    return RunError(f"the exported files compute something else: {reason}; export to another format")


def _probes(subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images uint8 [B, C, H, W] and labels, as many an image as the network is for."""
    generator = torch.Generator().manual_seed(subject.saved.step)
    classes, count = subject.config.model.num_classes, subject.config.model.num_labels
    for number in BATCHES:
        shape = (number, *subject.image_shape)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        if number > 2:
            images[0], images[1] = 0, 255
        labels = torch.rand(number, classes, generator=generator).argsort(1)[:, :count]
        yield images, labels[:, 0] if count == 1 else labels
