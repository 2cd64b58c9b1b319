"""Trained networks in files that other programs read. Start with README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsdist.lazy import load_on_use

if TYPE_CHECKING:
    from capsdist.export.format import Format
    from capsdist.export.run import export_run

__all__ = ["FORMATS", "Format", "export_run"]

FORMATS = {
    "safetensors": "capsdist.export.weights:SAFETENSORS",
    "hub": "capsdist.export.weights:HUB",
    "torch-export": "capsdist.export.torch_export:TORCH_EXPORT",
    "onnx": "capsdist.export.onnx:ONNX",
}
"""Import paths of the formats that have a name."""

__getattr__ = load_on_use(__name__, {"Format": ".format", "export_run": ".run"})
