"""Classifier and decoder as programs of torch.export: the base of the formats `torch-export` and `onnx`."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from capsdist.data import Transform
from capsdist.errors import RunError
from capsdist.export.format import Format, Read, write_config
from capsdist.export.subject import Outputs, Subject
from capsdist.models.capsule_network import CapsuleNetwork

__all__ = ["Classifier", "Program", "Programs", "Run", "programs_of"]

CLASSIFIER, DECODER = "classifier", "decoder"

Run = Callable[..., tuple[Tensor, ...]]
"""A program that was read: called with its inputs in order."""


class Classifier(nn.Module):
    """A network behind the preprocessing of evaluation, without decoder.

    Routing takes the reference, which torch's own operators make up: the program needs no capsdist.

    Shapes: images uint8 [B, C, H, W] -> scores [B, J], and parent_poses [B, J, E] of a network of capsules.
    """

    def __init__(self, network: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.transform = transform
        if isinstance(self.network, CapsuleNetwork):
            self.network.decoder = None
        for layer in self.network.modules():
            if is_dataclass(options := getattr(layer, "routing", None)):
                layer.routing = _as_reference(options)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return scores and parent poses of `images`."""
        output = self.network(self.transform.evaluated(images))
        return (output.scores,) if output.parent_poses is None else (output.scores, output.parent_poses)


def _as_reference(options: Any) -> Any:
    """Return options of a routing algorithm that make it take its reference."""
    values = {"backend": "reference", "recompute": "streamed"}
    known = {each.name for each in fields(options)}
    return replace(options, **{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class Program:
    """A program for any number of images; the first dimension of inputs and outputs is B.

    inputs, outputs: their names, in order.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def programs_of(subject: Subject) -> dict[str, Program]:
    """Return the programs of `subject` by name: the classifier, and the decoder of a network that has one.

    Raises:
        RunError: torch.export cannot follow the network.
    """
    transform = Transform.of(subject.config.data, train=False)
    classifier = Classifier(subject.predictor.network, transform)
    images = torch.zeros(2, *subject.image_shape, dtype=torch.uint8)
    # Run first: a tensor that a function caches would otherwise be one without values, of the exporter.
    first = classifier(images)
    outputs = ("scores", "parent_poses")[: len(first)]
    found = {CLASSIFIER: Program(_exported(classifier, images=images), ("images",), outputs)}
    if (decoder := subject.decoder) is not None:
        count = subject.config.model.num_labels
        labels = torch.zeros((2,) if count == 1 else (2, count), dtype=torch.int64)
        plain = copy.deepcopy(decoder).requires_grad_(False)
        program = _exported(plain, parent_poses=first[1], mask_labels=labels)
        found[DECODER] = Program(program, ("parent_poses", "labels"), ("reconstructions",))
    return found


def _exported(module: nn.Module, **inputs: Tensor) -> ExportedProgram:
    batch = Dim("batch")
    try:
        with quiet():
            return torch.export.export(
                module, tuple(inputs.values()), dynamic_shapes={name: {0: batch} for name in inputs}
            )
    except Exception as error:  # of any type: a network may be anybody's
        raise refused("torch.export", error) from error


def refused(exporter: str, error: Exception) -> RunError:
    """Return the error that says why an exporter of torch cannot export a network."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return RunError(f"{exporter} cannot export this network ({reason}); export it to safetensors or hub")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what torch's exporters tell users of their own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Programs(Format):
    """A format with a file for each program, named `classifier` and `decoder`, and config.json."""

    has_programs = True
    suffix: str

    def save(self, program: Program, path: Path) -> None:
        """Write `program` to the file `path`."""
        raise NotImplementedError

    def open(self, path: Path) -> Run:
        """Return the program in the file `path`."""
        raise NotImplementedError

    def write(self, folder: Path, subject: Subject) -> None:
        """Write the files."""
        for name, program in programs_of(subject).items():
            self.save(program, folder / f"{name}{self.suffix}")
        for path in folder.iterdir():  # weights of more than 1.5 GB have a file of their own
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_config(folder, subject, image_shape=subject.image_shape)

    def read(self, folder: Path) -> Read:
        """Return what the programs in `folder` compute."""
        programs: Mapping[str, Run] = {path.stem: self.open(path) for path in folder.glob(f"*{self.suffix}")}

        def run(images: Tensor, labels: Tensor) -> Outputs:
            found = programs[CLASSIFIER](images)
            drawn = programs[DECODER](found[1], labels) if DECODER in programs else ()
            return Outputs(*found, *drawn)

        return run
