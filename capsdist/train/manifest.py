"""The JSON files of a checkpoint: its manifest and its state. Needs no torch.

README.md of this package specifies the format. A file that matches its digest may still have been written by
somebody else, so both documents are checked for types and ranges before anybody uses them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

from capsdist.errors import DocumentError
from capsdist.storage.documents import parse_document, parse_json

__all__ = [
    "CONFIG", "FORMAT", "MANIFEST", "MODEL", "OPTIMIZER", "STATE", "Exported", "FileEntry", "Manifest",
    "State", "digest_of", "parse_exported", "parse_manifest", "parse_state",
]  # fmt: skip

FORMAT = 1
CONFIG = "config.json"
"""The one document of an exported network, in the place of manifest and state."""
MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
)  # fmt: skip

_SCALE = {"scale", "growth_tracker"}
_VARIANT = {"channels_last", "compiled"}  # fields of `capsdist.train.speed.Variant`


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Document):
    """Size and digest of a file."""

    bytes: NonNegativeInt
    xxh3_128: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


def _names(files: dict[str, FileEntry]) -> dict[str, FileEntry]:
    if files.keys() != {MODEL, OPTIMIZER, STATE}:
        raise ValueError(f"must name {MODEL}, {OPTIMIZER} and {STATE}")
    return files


class Manifest(_Document):
    """manifest.json: the other files of the checkpoint by name."""

    format: NonNegativeInt
    files: Annotated[dict[str, FileEntry], AfterValidator(_names)]


def _loss_scale(values: dict[str, float]) -> dict[str, float]:
    if values and (values.keys() != _SCALE or values["scale"] <= 0):
        raise ValueError("must be empty, or have a positive scale and a growth_tracker")
    return values


def _speed(values: dict[str, bool]) -> dict[str, bool]:
    if values and values.keys() != _VARIANT:
        raise ValueError(f"must be empty, or have {' and '.join(sorted(_VARIANT))}")
    return values


class State(_Document):
    """state.json: where the run stood. Fields: see `capsdist.train.checkpoint.Checkpoint`."""

    step: NonNegativeInt
    epoch: NonNegativeInt
    position: dict[str, int | str]
    loss_scale: Annotated[dict[str, NonNegativeFloat], AfterValidator(_loss_scale)]
    metrics: dict[str, float]
    versions: dict[str, str]
    config: dict[str, Any]
    classes: tuple[str, ...] | None = None
    speed: Annotated[dict[str, bool], AfterValidator(_speed)] = {}

    @property
    def error_percent(self) -> float | None:
        """The error that was measured with the weights of this checkpoint, None without a validation."""
        validated = self.metrics.get("validated_step") == self.step
        return self.metrics.get("error_percent") if validated else None

    @property
    def test_error_percent(self) -> float | None:
        """The same of a run that validates on the test split, None of a run with a split for validation."""
        data = self.config.get("data")
        splits: dict[str, Any] = data if isinstance(data, dict) else {}
        test = splits.get("test_split")
        return self.error_percent if splits.get("validation_split", test) == test else None


class Exported(State):
    """config.json of an exported network: `capsdist.export` writes it.

    files: size and digest of the file of weights, empty where there is none; image_shape: [C, H, W] of the
    images that exported programs take; model_type: `model.kind`.
    """

    format: NonNegativeInt
    files: dict[str, FileEntry] = {}
    image_shape: tuple[int, int, int] | None = None
    model_type: str
    epoch: NonNegativeInt = 0
    position: dict[str, int | str] = {}
    loss_scale: Annotated[dict[str, NonNegativeFloat], AfterValidator(_loss_scale)] = {}


def parse_manifest(content: bytes) -> Manifest:
    """Return what `content`, a manifest.json, holds.

    Raises:
        DocumentError: it is damaged, or of another format.
    """
    _check_format(content)
    return parse_document(content, Manifest)


def parse_exported(content: bytes) -> Exported:
    """Return what `content`, the config.json of an exported network, holds.

    Raises:
        DocumentError: it is damaged, of another format, or of a run.
    """
    _check_format(content)
    return parse_document(content, Exported)


def _check_format(content: bytes) -> None:
    values = parse_json(content)
    found = values.get("format") if isinstance(values, dict) else None
    if isinstance(found, int) and found != FORMAT:  # its other fields may mean something else
        raise DocumentError(f"has format {found}, this version of capsdist reads format {FORMAT}")


def parse_state(content: bytes) -> State:
    """Return what `content`, a state.json, holds.

    Raises:
        DocumentError: it is damaged.
    """
    return parse_document(content, State)


def digest_of(content: bytes) -> FileEntry:
    """Return what a manifest says of a file with this `content`."""
    import xxhash

    return FileEntry(bytes=len(content), xxh3_128=xxhash.xxh3_128_hexdigest(content))
