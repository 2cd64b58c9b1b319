"""`Format`: how a network becomes files, and how they are read to compare them with it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from capsdist.errors import Problem
from capsdist.export.subject import Outputs, Subject
from capsdist.storage.documents import dump_json
from capsdist.storage.durable import write_durably
from capsdist.train.manifest import CONFIG, FORMAT, FileEntry

__all__ = ["Format", "Read", "write_config"]

Read: TypeAlias = Callable[[Tensor, Tensor], Outputs]
"""Called with images uint8 [B, C, H, W] and the labels that the decoder draws, int64 [B] or [B, K]."""


class Format:
    """A format of exported networks; one is an object of a subclass, named by `capsdist.export.FORMATS`.

    packages: modules that it needs besides the dependencies of capsdist. has_programs: whether it holds
    programs, which take images of one size, not weights alone. has_card: whether it holds a model card.
    """

    packages: tuple[str, ...] = ()
    has_programs: bool = False
    has_card: bool = False

    def problem(self, name: str) -> Problem | None:
        """Return which packages the format, called `name`, lacks; None if it lacks none."""
        if not (lacking := [package for package in self.packages if not find_spec(package)]):
            return None
        rule = f"needs the package{'s' * (len(lacking) > 1)} {' and '.join(lacking)}"
        return Problem("to", name, rule, "pip install 'capsdist[export]'")

    def write(self, folder: Path, subject: Subject) -> None:
        """Write the files of `subject` into the empty `folder`, config.json among them.

        Raises:
            RunError: the network cannot be written in this format.
        """
        raise NotImplementedError

    def read(self, folder: Path) -> Read:
        """Return what the programs, or the weights, in `folder` compute; from the files alone."""
        raise NotImplementedError


def write_config(
    folder: Path,
    subject: Subject,
    *,
    files: dict[str, FileEntry] | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> None:
    """Write config.json, see `capsdist.train.manifest.Exported`.

    Fields that say where the run trained and kept its files are left out; a reader takes its own defaults.
    """
    saved = subject.saved
    config = saved.config.model_dump(mode="json")
    for section, name in (("data", "root"), ("train", "storage"), ("train", "init_from")):
        del config[section][name]
    del config["launch"]
    document = {
        "format": FORMAT,
        "model_type": saved.config.model.kind,
        "files": {name: entry.model_dump() for name, entry in (files or {}).items()},
        "image_shape": image_shape,
        "classes": saved.classes,
        "step": saved.step,
        "metrics": saved.metrics,
        "versions": saved.versions,
        "config": config,
    }
    write_durably(folder / CONFIG, dump_json(document))
