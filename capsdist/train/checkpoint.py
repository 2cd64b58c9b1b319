"""Checkpoints that depend on no engine: written by DDP or any ZeRO stage, read by any other.

A checkpoint is a folder of four files; README.md of this package specifies them. The manifest holds size and
digest of the other three and is written last: a folder without it is half written, one that does not match
it is damaged, and both are refused. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import torch

import capsdist
from capsdist.config import Config
from capsdist.errors import CheckpointError, DocumentError
from capsdist.storage.documents import dump_json, printable, read_file
from capsdist.storage.durable import flush_folder, write_durably
from capsdist.train.manifest import (
    CONFIG,
    FORMAT,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    Exported,
    FileEntry,
    Manifest,
    State,
    digest_of,
    parse_exported,
    parse_manifest,
    parse_state,
)
from capsdist.train.state import EngineState, Pieces, check_tensors, copy_into, first_not_finite, first_unfit
from capsdist.train.tensors import open_tensors, write_tensors

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Checkpoint", "EngineState", "build_network", "load_model", "open_checkpoint", "read_checkpoint",
    "read_config",
    "verify_checkpoint", "versions", "write_checkpoint",
]  # fmt: skip

_OLDER = "take an older checkpoint"
_FLOATS = {torch.float32, torch.float64}


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the engine's state, and where the run stood.

    step: optimizer steps done; epoch: epochs begun, from 0; position: of the data (`capsdist.data.Position`
    as a dict); metrics: of the last validation; versions: of the programs that wrote it; classes: names by
    label, None in a checkpoint of version 0.1; speed: `capsdist.train.speed.Steps.stored` of the run.
    """

    engine: EngineState
    step: int
    epoch: int
    position: dict[str, object]
    config: Config
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    speed: Mapping[str, bool] = field(default_factory=dict)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` into `folder`, which is created; all is flushed to disk, the manifest last.

    Of the state of an engine it is collective: other ranks call `EngineState.send`.
    Cost: 12 bytes per parameter written and hashed, 0.1-0.3 s for the MNIST network; memory for a piece of a
    tensor, of an engine under ZeRO 3 for a whole one.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    state = {
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "position": checkpoint.position,
        "loss_scale": checkpoint.engine.loss_scale,
        "metrics": checkpoint.metrics,
        "versions": versions(),
        "config": checkpoint.config.model_dump(mode="json"),
        "classes": checkpoint.classes,
        "speed": dict(checkpoint.speed),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = {
            MODEL: write_tensors(folder / MODEL, checkpoint.engine.model),
            OPTIMIZER: write_tensors(folder / OPTIMIZER, checkpoint.engine.optimizer),
        }
        content = dump_json(state)
        write_durably(folder / STATE, content)
        files = {name: entry.model_dump() for name, entry in (entries | {STATE: digest_of(content)}).items()}
        write_durably(folder / MANIFEST, dump_json({"format": FORMAT, "files": files}))
        flush_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {folder} cannot be written ({error.strerror or error}); make room there, or "
            "allow it to be written, and start again"
        ) from None


def verify_checkpoint(folder: Path) -> State:
    """Check that `folder` holds a verified checkpoint of this format and return its state.json.

    Every file is there, has its size and digest, and holds values that a run can use: tensors and numbers
    are finite.

    Raises:
        CheckpointError: naming the folder, the file and what is wrong.
    """
    return _verified(folder)[0]


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Verify and read the checkpoint in `folder`; as `open_checkpoint`, with all tensors in memory."""
    found = open_checkpoint(folder)
    return replace(found, engine=found.engine.read())


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Verify the checkpoint in `folder`, and read all but its tensors, which are read when they are used.

    It may be an exported network, which has no optimizer state (`capsdist.export`).
    Nothing is mapped: a file that is cut or overwritten meanwhile is a CheckpointError, not a signal.

    Raises:
        CheckpointError: it is missing, half written, damaged, of another format, or its configuration has
            fields that this version does not know; `folder` is not a local folder, or that of a whole run.
    """
    folder = _checkpoint_folder(folder)
    state, model, optimizer = _verified(folder)
    return Checkpoint(
        engine=EngineState(model, optimizer, state.loss_scale),
        step=state.step,
        epoch=state.epoch,
        position=dict(state.position),
        config=_parse_config(folder, state.config),
        metrics=state.metrics,
        versions=state.versions,
        classes=state.classes,
        speed=dict(state.speed),
    )


def read_config(folder: Path) -> Config:
    """Return the configuration of the checkpoint in `folder`, whose tensors are not read.

    Raises:
        CheckpointError: as `open_checkpoint`, of the files read.
    """
    state = _exported(folder) or _read_state(folder, _manifest(folder).files[STATE])
    return _parse_config(folder, state.config)


def load_model(folder: str | Path) -> tuple[Config, nn.Module]:
    """Return the configuration and the network of a checkpoint, ready for evaluation on the CPU.

    Needs neither Ray nor DeepSpeed.

    Raises:
        CheckpointError: as `open_checkpoint`.

    Example:
        >>> config, network = load_model("runs/quickstart/step_00000252")
    """
    checkpoint = open_checkpoint(folder)
    return checkpoint.config, build_network(checkpoint)


def build_network(checkpoint: Checkpoint) -> nn.Module:
    """Return the network of `checkpoint` with its weights, ready for evaluation on the CPU.

    Raises:
        CheckpointError: its configuration describes no network, or its weights do not fit it.
    """
    from capsdist.models import build_model

    try:
        network = build_model(checkpoint.config.model, checkpoint.config.routing)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # types fit, values do not
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"the checkpoint's configuration describes no network ({reason}); take an older checkpoint"
        ) from None
    weights, own = checkpoint.engine.model, network.state_dict()
    check_tensors(weights, {name: tensor.shape for name, tensor in own.items()})
    for name, tensor in own.items():
        copy_into(tensor, weights[name])
    return network.eval()


def _checkpoint_folder(place: object) -> Path:
    """Return `place` as a path.

    Raises:
        CheckpointError: it cannot be the folder of a checkpoint.
    """
    remedy = "give the local folder of a checkpoint, RUN/step_XXXXXXXX"
    if not isinstance(place, str | os.PathLike):
        raise CheckpointError(f"checkpoint {place!r}: is not a path; {remedy}")
    text = os.fspath(place)
    if "://" in text:
        raise CheckpointError(f"checkpoint {text}: is a URL; copy it to this machine and {remedy}")
    folder = Path(text)
    if folder.is_file():
        raise CheckpointError(f"checkpoint {folder}: is a file; {remedy}")
    if not (folder / MANIFEST).exists() and (found := sorted(folder.glob("step_*"))):
        raise CheckpointError(
            f"checkpoint {folder}: is a run; give one of its checkpoints, such as {found[-1]}"
        )
    return folder


def _verified(folder: Path) -> tuple[State, dict[str, Pieces], dict[str, Pieces]]:
    """Return what the files of a verified checkpoint hold: state, weights, optimizer state."""
    if exported := _exported(folder):
        return exported, _open(folder, MODEL, exported.files[MODEL]), {}
    expected = _manifest(folder).files
    state = _read_state(folder, expected[STATE])
    model, slots = (_open(folder, name, expected[name]) for name in (MODEL, OPTIMIZER))
    if (found := first_unfit(slots)) is not None:
        raise _damaged(folder, OPTIMIZER, f"holds {found!r} with values that Adam cannot have")
    return state, model, slots


def _exported(folder: Path) -> Exported | None:
    """Return the config.json of an exported network; None for a checkpoint, which has a manifest."""
    if (folder / MANIFEST).exists() or not ((folder / CONFIG).exists() and (folder / MODEL).exists()):
        return None
    with _reported(folder, CONFIG):
        exported = parse_exported(read_file(folder / CONFIG))
        if exported.files.keys() != {MODEL}:
            raise DocumentError(f"names other files than {MODEL}")
        return exported


def _manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}; give the folder that holds {MANIFEST}")
    try:
        return parse_manifest(read_file(folder / MANIFEST))
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {folder} is half written: no {MANIFEST}; {_OLDER}") from None
    except DocumentError as error:
        raise _damaged(folder, MANIFEST, str(error)) from None


def _damaged(folder: Path, name: str, reason: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder} is damaged: {name} {reason}; {_OLDER}")


def _parse_config(folder: Path, values: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        faults = ", ".join(f"{'.'.join(map(str, e['loc']))} ({e['msg']})" for e in error.errors())
        raise CheckpointError(
            f"checkpoint {folder} has a configuration that this version does not know: {printable(faults)}; "
            "use the version of capsdist that wrote it"
        ) from error


@contextlib.contextmanager
def _reported(folder: Path, name: str) -> Iterator[None]:
    """Make of whatever is wrong with a file of a checkpoint one error."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {folder} lacks {name}; {_OLDER}") from None
    except DocumentError as error:
        raise _damaged(folder, name, str(error)) from None
    except OSError as error:
        raise _damaged(folder, name, f"cannot be read ({error.strerror or error})") from None


def _read_state(folder: Path, expected: FileEntry) -> State:
    with _reported(folder, STATE):
        content = read_file(folder / STATE)
        if (found := digest_of(content)) != expected:
            raise DocumentError(f"has {found.model_dump()}, its manifest says {expected.model_dump()}")
        return parse_state(content)


def _open(folder: Path, name: str, expected: FileEntry) -> dict[str, Pieces]:
    with _reported(folder, name):
        tensors = open_tensors(folder / name, expected)
        for key, tensor in tensors.items():
            if name != MODEL and tensor.dtype not in _FLOATS:
                raise DocumentError(f"holds {key!r} of type {tensor.dtype}, not float32 or float64")
    if (found := first_not_finite(tensors)) is not None:
        raise _damaged(folder, name, f"holds {found!r} with values that are not finite")
    return tensors


def versions() -> dict[str, str]:
    """Return the versions of the programs that compute the numbers."""
    return {"capsdist": capsdist.__version__, "torch": torch.__version__, "python": platform.python_version()}
