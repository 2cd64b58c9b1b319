"""The formats `safetensors` and `hub`: weights and configuration, which `capsdist.load` reads."""

from __future__ import annotations

from pathlib import Path

from capsdist.export.card import model_card
from capsdist.export.format import Format, Read, write_config
from capsdist.export.subject import Subject
from capsdist.storage.durable import write_durably
from capsdist.train.checkpoint import open_checkpoint
from capsdist.train.manifest import MODEL
from capsdist.train.tensors import write_tensors

__all__ = ["HUB", "SAFETENSORS", "Weights"]


class Weights(Format):
    """model.safetensors and config.json; with `has_card` also README.md, as model hubs expect."""

    def __init__(self, *, has_card: bool) -> None:
        self.has_card = has_card

    def write(self, folder: Path, subject: Subject) -> None:
        """Write the files."""
        write_config(
            folder, subject, files={MODEL: write_tensors(folder / MODEL, subject.saved.engine.model)}
        )
        if self.has_card:
            write_durably(folder / "README.md", model_card(subject).encode())

    def read(self, folder: Path) -> Read:
        """Return what the network of the folder computes."""
        saved = open_checkpoint(folder)
        return Subject.of(saved, str(folder), (0, 0)).outputs


SAFETENSORS, HUB = Weights(has_card=False), Weights(has_card=True)
