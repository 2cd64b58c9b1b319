"""The results table of the README, written from the records alone: a cell without a record says "not run"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from capsdist.errors import DataError, DocumentError
from capsdist.storage.documents import parse_document, read_file

__all__ = ["newest_records", "number", "results_table", "with_table"]

_MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", flags=re.DOTALL)


class _Record(BaseModel):
    """What the table takes from a record, which has more."""

    model_config = ConfigDict(extra="allow")

    what: str
    written: str
    figures: dict[str, Any]
    hardware: dict[str, Any]


_SIGNIFICANT = 4  # digits of the figures in records


@dataclass(frozen=True)
class _Aim:
    """What a figure has to be; `bound` is "at least" or "at most"."""

    bound: str
    value: float

    def missed_by(self, value: float) -> bool:
        return value < self.value if self.bound == "at least" else value > self.value


def _least(value: float) -> _Aim:
    return _Aim("at least", value)


def _most(value: float) -> _Aim:
    return _Aim("at most", value)


@dataclass(frozen=True)
class _Row:
    """One line of the table: its aim, which figure of which record answers it, and what kind that is.

    kind: words, or "median" with `runs`, where in the record the number of runs stands.
    """

    label: str
    aim: _Aim | str | None
    what: str | None = None
    figure: str = "error_percent"
    unit: str = " %"
    kind: str = "one run"
    runs: str = ""


_ERRORS = (
    _Row("4,000 real digits, a few epochs (`make quickstart`)", _most(3.5), "quickstart"),
    _Row("MNIST, CapsNet r=3, after 1 epoch (cut and continued)", _most(2.5), "mnist-1-epoch"),
    _Row("MNIST, CapsNet r=3, reconstruction, whole training", "0.25 % (paper)"),
    _Row("MNIST, baseline CNN, whole training", "0.39 % (paper)"),
    _Row("CIFAR-10, one network, whole training", "10.6 % with 7 networks (paper)"),
)


def _routing(label: str, aim: _Aim | None, figure: str, unit: str = "") -> _Row:
    return _Row(label, aim, "routing", figure, unit, "ratio of medians", "figures.num_runs")


def _counted(label: str, aim: _Aim | None, figure: str, unit: str = "", what: str = "routing") -> _Row:
    return _Row(label, aim, what, figure, unit, "counted")


_COSTS = (
    _routing("routing against textbook, times faster", _least(5), "speedup_vs_reference"),
    _routing("routing against the full-shape form, times faster", _least(10), "speedup_vs_full_shape"),
    _routing("routing, share of the matrix product's rate", _least(0.22), "share_of_gemm_rate"),
    _counted("routing, bytes kept an image, r=10", _most(50_000), "saved_bytes_per_image_r10"),
    _counted("routing, peak bytes, 128 images", _most(64_000_000), "peak_bytes"),
    _counted("the same with CIFAR-10's network", _most(400_000_000), "cifar10_peak_bytes"),
    _counted("routing, times less memory than textbook", _least(8), "memory_ratio_vs_reference"),
    _Row(
        "MNIST training step, r=3 over r=1", _most(1.15), "routing", "step_r3_over_r1", "",
        "ratio of medians", "figures.num_step_runs",
    ),
    _Row(
        "input pipeline, one rank, MNIST-size images/s", None, "pipeline", "images_per_s", "",
        "median", "config.repeats",
    ),
    _counted("9 faults injected: samples lost", _most(0), "samples_lost", what="faults"),
    _counted("samples doubled", _most(0), "samples_doubled", what="faults"),
    _counted("runs that end with other bits", _most(0), "runs_diverged", what="faults"),
    _counted("tests that fail while two busy loops run", _most(0), "failed", what="suite-loaded"),
    _Row(
        "from a worker's crash to the next step", _most(30), "recovery", "worker_s", " s",
        "median", "config.repeats",
    ),
    _Row(
        "from a lost host to the next step, with a spare", _most(60), "recovery", "host_s", " s",
        "median", "config.repeats",
    ),
    _Row("search of 12 trials, killed and started again", _most(1_200), "tune", "whole_s", " s"),
    _Row(
        "`import capsdist`, interpreter included", _most(1), "startup", "import_s", " s",
        "median", "config.repeats",
    ),
    _Row(
        "`python jobs/train_cifar.py --check`", _most(1), "startup", "check_s", " s",
        "median", "config.repeats",
    ),
    _Row("`make quickstart` with installation (bf16)", _most(600), "quickstart", "whole_s", " s"),
    _Row("the same run in fp32, AVX2 only, without installation", None, "quickstart-fp32", "wall_s", " s"),
    _Row("GPU, bf16: routing against textbook, times faster", _least(15), "gpu", "speedup_vs_reference", ""),
    _Row("GPU, bf16: routing, share of its roofline", _least(0.4), "gpu", "share_of_roofline", ""),
    _Row("GPU, bf16: MNIST training step, r=3 over r=1", _most(1.05), "gpu", "step_r3_over_r1", ""),
    _Row("GPU, bf16: MNIST training, images/s", _least(100_000), "gpu", "images_per_s", ""),
    _Row("GPU, bf16: layer of ImageNet's size, 256 images, ms", None, "gpu", "imagenet_ms", ""),
    _Row("the same training on a GPU, images/s", None, "quickstart-gpu", "images_per_s", ""),
)  # fmt: skip


def newest_records(records: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the newest record of every subject: what -> (folder's name, record).

    Raises:
        DataError: a record is damaged; names it.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for file in records.glob("*/record.json"):
        try:
            record = parse_document(read_file(file), _Record).model_dump()
        except DocumentError as error:
            raise DataError(f"{file} {error}; restore it (git checkout), or remove its folder") from None
        known = found.get(record["what"])
        if known is None or known[1]["written"] < record["written"]:
            found[record["what"]] = (file.parent.name, record)
    return found


def results_table(records: Path) -> str:
    """Return the results as Markdown: error and cost, aim, figure and its kind, machine and record.

    A figure that misses its aim says so.
    """
    newest = newest_records(records)
    head = ["| {} | aim | measured | that is | machine | record |", "|---|---|---|---|---|---|"]
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
    aim = row.aim or "-"
    if isinstance(aim, _Aim):
        aim = f"{aim.bound} {number(aim.value)}{row.unit}"
    if value is None:
        return f"| {row.label} | {aim} | not run | | | |"
    measured = f"{number(value)}{row.unit}"
    if isinstance(row.aim, _Aim) and row.aim.missed_by(value):
        measured = f"**{measured}, missed**"
    link = f"[{record['written'][:10]}](jobs/records/{folder})"
    kind = _kind(row, record)
    return f"| {row.label} | {aim} | {measured} | {kind} | {_machine(record['hardware'])} | {link} |"


def _kind(row: _Row, record: Mapping[str, Any]) -> str:
    """Return what kind of figure it is, with the number of runs where the record has it."""
    section, _, name = row.runs.partition(".")
    runs = record.get(section, {}).get(name) if row.runs else None
    return row.kind if runs is None else f"{row.kind} of {number(runs)}"


def number(value: float) -> str:
    """Return a figure as tables and texts show it: to the digits that records hold, grouped by commas."""
    exponent = math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:,.{max(0, _SIGNIFICANT - 1 - exponent)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _machine(hardware: Mapping[str, Any]) -> str:
    return str(hardware.get("gpu") or f"{hardware['cpu']}, {hardware['num_cores']} cores")
