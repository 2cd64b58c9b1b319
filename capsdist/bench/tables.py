"""The results table of the README, written from the records alone: a cell without a record says "not run"."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["newest_records", "results_table", "with_table"]

_MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", flags=re.DOTALL)


@dataclass(frozen=True)
class _Row:
    """One line of the table: its aim, and which figure of which record answers it."""

    label: str
    aim: str
    what: str | None = None
    figure: str = "error_percent"
    unit: str = " %"


_ERRORS = (
    _Row("4,000 real digits, a few epochs (`make quickstart`)", "below 3.5", "quickstart"),
    _Row("MNIST, CapsNet r=3, after 1 epoch (cut and continued)", "below 2.5", "mnist-1-epoch"),
    _Row("MNIST, CapsNet r=3, reconstruction, whole training", "0.25 (paper)"),
    _Row("MNIST, baseline CNN, whole training", "0.39 (paper)"),
    _Row("CIFAR-10, one network, whole training", "10.6 with 7 networks (paper)"),
)
_COSTS = (
    _Row("routing against textbook, times faster", "5", "routing", "speedup_vs_reference", ""),
    _Row("routing against the full-shape form, times faster", "10", "routing", "speedup_vs_full_shape", ""),
    _Row("routing, share of the matrix product's rate", "0.22", "routing", "share_of_gemm_rate", ""),
    _Row("routing, bytes kept an image, r=10", "50,000", "routing", "saved_bytes_per_image_r10", ""),
    _Row("routing, peak bytes, 128 images", "64,000,000", "routing", "peak_bytes", ""),
    _Row("the same with CIFAR-10's network", "400,000,000", "routing", "cifar10_peak_bytes", ""),
    _Row("routing, times less memory than textbook", "8", "routing", "memory_ratio_vs_reference", ""),
    _Row("MNIST training step, r=3 over r=1", "1.15", "routing", "step_r3_over_r1", ""),
    _Row("input pipeline, one rank, MNIST-size images/s", "-", "pipeline", "images_per_s", ""),
    _Row("5 faults injected: samples lost", "0", "faults", "samples_lost", ""),
    _Row("samples doubled", "0", "faults", "samples_doubled", ""),
    _Row("runs that end with other bits", "0", "faults", "runs_diverged", ""),
    _Row("from a worker's crash to the next step", "30 s", "recovery", "worker_s", " s"),
    _Row("from a lost host to the next step, with a spare", "60 s", "recovery", "host_s", " s"),
    _Row("search of 12 trials, killed and started again", "1,200 s", "tune", "whole_s", " s"),
    _Row("`import capsdist`, interpreter included", "1 s", "startup", "import_s", " s"),
    _Row("`python jobs/train_cifar.py --check`", "1 s", "startup", "check_s", " s"),
    _Row("`make quickstart` with installation (bf16)", "600 s", "quickstart", "whole_s", " s"),
    _Row("the same run in fp32, AVX2 only, without installation", "-", "quickstart-fp32", "wall_s", " s"),
    _Row("GPU, bf16: routing against textbook, times faster", "15", "gpu", "speedup_vs_reference", ""),
    _Row("GPU, bf16: routing, share of its roofline", "0.4", "gpu", "share_of_roofline", ""),
    _Row("GPU, bf16: MNIST training step, r=3 over r=1", "1.05", "gpu", "step_r3_over_r1", ""),
    _Row("GPU, bf16: MNIST training, images/s", "100,000", "gpu", "images_per_s", ""),
    _Row("GPU, bf16: layer of ImageNet's size, 256 images, ms", "-", "gpu", "imagenet_ms", ""),
    _Row("the same training on a GPU, images/s", "-", "quickstart-gpu", "images_per_s", ""),
)


def newest_records(records: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the newest record of every subject: what -> (folder's name, record)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for file in records.glob("*/record.json"):
        record = json.loads(file.read_text())
        known = found.get(record["what"])
        if known is None or known[1]["written"] < record["written"]:
            found[record["what"]] = (file.parent.name, record)
    return found


def results_table(records: Path) -> str:
    """Return the results as Markdown: error and cost, aim and figure, machine and record."""
    newest = newest_records(records)
    head = ["| {} | aim | measured | machine | record |", "|---|---|---|---|---|"]
    parts = [
        "\n".join([head[0].format(title), head[1], *(_line(row, newest) for row in rows)])
        for title, rows in (("test error", _ERRORS), ("cost", _COSTS))
    ]
    return "\n\n".join(parts) + "\n"


def with_table(readme: str, table: str) -> str:
    """Return `readme` with `table` between its marks.

    Raises:
        ValueError: the marks are missing.
    """
    if not _MARKS.search(readme):
        raise ValueError(
            "the text has no <!-- results --> ... <!-- /results -->; put the marks where the table goes"
        )
    return _MARKS.sub(lambda marks: f"{marks[1]}{table}{marks[2]}", readme)


def _line(row: _Row, newest: Mapping[str, tuple[str, dict[str, Any]]]) -> str:
    folder, record = newest.get(row.what or "", ("", {}))
    value = record.get("figures", {}).get(row.figure)
    if value is None:
        return f"| {row.label} | {row.aim} | not run | | |"
    link = f"[{record['written'][:10]}](jobs/records/{folder})"
    return (
        f"| {row.label} | {row.aim} | {_number(value)}{row.unit} | {_machine(record['hardware'])} | {link} |"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _machine(hardware: Mapping[str, Any]) -> str:
    return str(hardware.get("gpu") or f"{hardware['cpu']}, {hardware['num_cores']} cores")
