"""Checkpoints that no engine owns: written by DDP or any ZeRO stage, read by any other, and without either.

A checkpoint is a folder of four files; README.md of this package specifies them. The manifest holds size and
digest of the other three and is written last: a folder without it is half written, one that does not match
it is damaged, and both are refused. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import capsdist
from capsdist.config import Config
from capsdist.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Checkpoint", "EngineState", "build_network", "check_tensors", "load_model", "read_checkpoint",
    "verify_checkpoint", "write_checkpoint",
]  # fmt: skip

FORMAT = 1
MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
)  # fmt: skip


@dataclass(frozen=True)
class EngineState:
    """What an engine holds, in the one form that all engines share; tensors on the CPU.

    model: every parameter (fp32 master weights) and persistent buffer by its name in the network.
    optimizer: `<parameter>/<slot>`: `exp_avg` and `exp_avg_sq` shaped like the parameter, `step` a scalar.
    loss_scale: of fp16 (`scale`, `growth_tracker`), else empty.
    """

    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    loss_scale: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the engine's state, and where the run stood.

    step: optimizer steps done; epoch: epochs begun, from 0; position: of the data (`capsdist.data.Position`
    as a dict); metrics: of the last validation; versions: of the programs that wrote it; classes: names by
    label, None in a checkpoint of version 0.1.
    """

    engine: EngineState
    step: int
    epoch: int
    position: dict[str, object]
    config: Config
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` into `folder`, which is created; all is flushed to disk, the manifest last.

    Cost: 12 bytes a parameter written and hashed, 0.1-0.3 s for the MNIST network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_storable(checkpoint.engine.model), folder / MODEL)
    save_file(_storable(checkpoint.engine.optimizer), folder / OPTIMIZER)
    state = {
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "position": checkpoint.position,
        "loss_scale": checkpoint.engine.loss_scale,
        "metrics": checkpoint.metrics,
        "versions": _versions(),
        "config": checkpoint.config.model_dump(mode="json"),
        "classes": checkpoint.classes,
    }
    _write_json(folder / STATE, state)
    for name in (MODEL, OPTIMIZER):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    files = {name: _describe(folder / name) for name in (MODEL, OPTIMIZER, STATE)}
    _write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def verify_checkpoint(folder: Path) -> None:
    """Check that `folder` holds a whole checkpoint of this format: every file there, of its size and digest.

    Raises:
        CheckpointError: naming the folder, the file and what is wrong.
    """
    manifest = _read_json(folder, MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {manifest.get('format')}, this version reads {FORMAT}; "
            "use the version of capsdist that wrote it"
        )
    for name in (MODEL, OPTIMIZER, STATE):
        path, expected = folder / name, manifest["files"].get(name)
        if not path.exists() or expected is None:
            raise CheckpointError(f"checkpoint {folder} lacks {name}; resume from an older checkpoint")
        found = _describe(path)
        if found != expected:
            raise CheckpointError(
                f"checkpoint {folder} is damaged: {name} has {found}, its manifest says {expected}; "
                "resume from an older checkpoint"
            )


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify and read the checkpoint in `folder`; tensors are memory-mapped, so ranks of one host share them.

    Raises:
        CheckpointError: it is missing, half written, damaged, of another format, or its configuration has
            fields that this version does not know.
    """
    verify_checkpoint(folder)
    state = _read_json(folder, STATE)
    return Checkpoint(
        engine=EngineState(_load(folder, MODEL), _load(folder, OPTIMIZER), state["loss_scale"]),
        step=state["step"],
        epoch=state["epoch"],
        position=state["position"],
        config=_parse_config(folder, state["config"]),
        metrics=state["metrics"],
        versions=state["versions"],
        classes=_classes(state),
    )


def load_model(folder: str | Path) -> tuple[Config, nn.Module]:
    """Return the configuration and the network of a checkpoint, ready for evaluation on the CPU.

    Needs neither Ray nor DeepSpeed. Raises CheckpointError as `read_checkpoint`.

    Example:
        >>> config, network = load_model("runs/quickstart/step_00000252")
    """
    checkpoint = read_checkpoint(Path(folder))
    return checkpoint.config, build_network(checkpoint)


def build_network(checkpoint: Checkpoint) -> nn.Module:
    """Return the network of `checkpoint` with its weights, ready for evaluation on the CPU.

    Raises:
        CheckpointError: its weights do not fit its configuration.
    """
    from capsdist.models import build_model

    network = build_model(checkpoint.config.model, checkpoint.config.routing)
    weights = checkpoint.engine.model
    check_tensors(weights, {name: tensor.shape for name, tensor in network.state_dict().items()})
    network.load_state_dict(weights)
    return network.eval()


def check_tensors(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Check that a state holds exactly the `expected` names and shapes.

    Raises:
        CheckpointError: naming the first tensor that is missing, left over, or of another shape.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"checkpoint lacks {name!r}; resume with the configuration that wrote it")
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"checkpoint has {name!r} of shape {list(tensors[name].shape)}, the network "
                f"{list(shape)}; resume with the configuration that wrote it"
            )
    if unknown := next((name for name in tensors if name not in expected), None):
        raise CheckpointError(
            f"checkpoint has {unknown!r}, the network has no such tensor; "
            "resume with the configuration that wrote it"
        )


def _parse_config(folder: Path, values: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        faults = ", ".join(f"{'.'.join(map(str, e['loc']))} ({e['msg']})" for e in error.errors())
        raise CheckpointError(
            f"checkpoint {folder} has a configuration that this version does not know: {faults}; "
            "use the version of capsdist that wrote it"
        ) from error


def _storable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _classes(state: dict[str, Any]) -> tuple[str, ...] | None:
    names = state.get("classes")
    return None if names is None else tuple(names)


def _load(folder: Path, name: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / name)
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {folder}: {name} cannot be read ({error})") from error


def _describe(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}; give the folder that holds {MANIFEST}")
    if not path.exists():
        raise CheckpointError(f"checkpoint {folder} is half written: no {name}; resume from an older one")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {name} is no JSON ({error}); resume from an older one"
        ) from error


def _versions() -> dict[str, str]:
    return {"capsdist": capsdist.__version__, "torch": torch.__version__, "python": platform.python_version()}
