"""interactive.html of a run: draw an image that the whole network reads, and turn the pose of a class."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from capsdist.analysis.drawing import class_names
from capsdist.analysis.overview import shown_place
from capsdist.analysis.report.facts import RunFacts
from capsdist.analysis.report.pages import base64_text, page
from capsdist.analysis.report.weights import packed, restored
from capsdist.analysis.subject import in_turn, read_images
from capsdist.config import Config
from capsdist.console import Log
from capsdist.errors import CapsdistError, ConfigError, Problem, RunError
from capsdist.models import CapsNet
from capsdist.models.layers import ClassCapsules, Conv2d
from capsdist.ops.predictions import largest
from capsdist.ops.targets import class_mask
from capsdist.runs.checkpoints import best_verified, newest_verified
from capsdist.runs.rundir import INTERACTIVE
from capsdist.train.checkpoint import load_model

__all__ = ["MAX_BYTES", "network_spec", "write_interactive"]

MAX_BYTES = 40_000_000
"""Size of a page that browsers still open quickly."""
_RESERVED_BYTES = 2_000_000  # of a page, for all but the weights
_NUM_SAMPLES = 20
_NUM_COMPARED = 100
_NUM_READ = 500
_NO_IMAGES: dict[str, Any] = {"samples": [], "typical": [], "same": None}


def write_interactive(
    facts: RunFacts, *, best: bool = False, data_root: str | Path | None = None, log: Log = print
) -> str:
    """Write interactive.html into the folder of a run, one file that needs no other; return its path or URL.

    The page holds the weights of the newest checkpoint, or the `best`, in 8 bits, and computes in JavaScript.
    With the packed test images, below `data_root` in place of the run's data.root, it offers some of them.

    Raises:
        ConfigError: the network is no `CapsNet`, or its page would exceed MAX_BYTES.
        RunError: there is no checkpoint, or the page cannot be written.
        CheckpointError: no checkpoint is whole; or none was validated, for `best`.
    """
    with best_verified(facts.files, log) if best else newest_verified(facts.files, log) as whole:
        if whole is None:
            raise RunError(f"{facts.files} has no checkpoint; give the folder of a run that has trained")
        config, network = load_model(whole.folder)
    images = None
    capsnet = _checked(config, network)
    try:
        found = read_images(config, capsnet, shown_place(config, facts.rows, data_root), _NUM_READ)
        images = found.seen, found.shown, found.labels
    except CapsdistError as error:
        log(f"note: the page offers no test images: {error}")
    facts.files.write(INTERACTIVE, interactive_page(facts, config, capsnet, images))
    return facts.files.path(INTERACTIVE)


def interactive_page(
    facts: RunFacts, config: Config, network: CapsNet, images: tuple[Tensor, Tensor, Tensor] | None
) -> bytes:
    """Return the page; images: seen, shown, labels of `ReadImages`; None without any."""
    tensors = network.state_dict()
    entries, content = packed(tensors)
    rounded = copy.deepcopy(network)
    rounded.load_state_dict(restored(entries, content, tensors))
    names = [*facts.classes, *map(str, range(len(facts.classes), network.num_classes))]
    spec = network_spec(config, network, names) | {"tensors": [asdict(entry) for entry in entries]}
    return page(
        "interactive.html",
        title=facts.name,
        facts=facts,
        spec=spec,
        weights=base64_text(content),
        num_parameters=sum(each.numel() for each in tensors.values()),
        **(_of_images(network, rounded, images, names) if images else _NO_IMAGES),
    )


def network_spec(config: Config, network: CapsNet, classes: Sequence[str]) -> dict[str, Any]:
    """Return what network.js has to know of a network besides its tensors."""
    routing = network.class_capsules.routing
    return {
        "image_shape": list(network.image_shape),
        "classes": list(classes),
        "num_labels": network.num_labels,
        "standardise": config.data.standardise,
        "mean": list(config.data.normalise_mean),
        "std": list(config.data.normalise_std),
        "conv": _layer(network.conv),
        "primary": _layer(network.primary_capsules.conv),
        "child_dim": network.primary_capsules.dim,
        "parent_dim": network.class_capsules.parent_dim,
        "iterations": routing.iterations,
        "none_of_the_above": routing.none_of_the_above,
        "decoder": network.decoder is not None,
    }


def _layer(conv: Conv2d) -> dict[str, Any]:
    return {
        "kernel": conv.kernel_size[0],
        "stride": conv.stride[0],
        "same": conv.padding_name == "same",
        "scale": 1 if conv.scale is None else conv.scale,
    }


def _checked(config: Config, network: nn.Module) -> CapsNet:
    """Return the network.

    Raises:
        ConfigError: a page cannot compute it, or would be too large.
    """
    kind = config.model.kind
    if type(network) is not CapsNet or not isinstance(network.class_capsules, ClassCapsules):
        rule = "is a network that the page has no JavaScript for"
        raise ConfigError(
            [Problem("model.kind", kind, rule, "give a run of the family capsnet with dynamic routing")]
        )
    size = sum(each.numel() for each in network.parameters()) * 4 // 3
    if size > MAX_BYTES - _RESERVED_BYTES:
        rule = f"has weights of {size / 1e6:.0f} MB in base64; a page has at most {MAX_BYTES / 1e6:.0f} MB"
        raise ConfigError([Problem("model", kind, rule, "give a run of a smaller network")])
    return network


@torch.no_grad()
def _of_images(
    network: CapsNet, rounded: CapsNet, images: tuple[Tensor, Tensor, Tensor], names: Sequence[str]
) -> dict[str, Any]:
    """Return what the page shows of test images.

    samples: images, with their classes and what the network reads; typical: mean poses [J, E] of each class;
    same: of how many images the rounded weights read the same classes, and of how many that is.
    """
    seen, shown, labels = images
    outputs = [network(part) for part in seen.split(_NUM_COMPARED)]
    scores = torch.cat([output.scores for output in outputs])
    poses = torch.cat([output.parent_poses for output in outputs])
    read = largest(scores, network.num_labels)
    again = largest(rounded(seen[:_NUM_COMPARED]).scores, network.num_labels)
    equal = (again.sort(1).values == read[: len(again)].sort(1).values).all(1)
    members = class_mask(labels, network.num_classes).float()
    typical = torch.einsum("nj,nje->je", members, poses) / members.sum(0).clamp_min(1)[:, None]
    pixels = (255 * shown.clamp(0, 1)).round().to(torch.uint8)
    chosen = in_turn(labels, torch.ones(len(labels), dtype=torch.bool), _NUM_SAMPLES).tolist()
    return {
        "samples": [
            {
                "pixels": base64_text(pixels[n].numpy().tobytes()),
                "label": class_names(labels[n].numpy(), names),
                "read": class_names(read[n].numpy(), names),
            }
            for n in chosen
        ],
        "typical": [[round(value, 4) for value in row] for row in typical.tolist()],
        "same": (int(equal.sum()), len(equal)),
    }
