"""Write the tables of results from the records; a cell without a record says "not run"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from capsdist.bench.aims import Aim, Row, goals_table, least, most, number
from capsdist.bench.capsule_aims import CAPSULE_ROWS, LATER_ROUTINGS
from capsdist.bench.gpu_aims import GPU_ROWS
from capsdist.bench.paper_aims import PAPER_ROWS
from capsdist.bench.pipeline_aims import PIPELINE_ROWS
from capsdist.bench.routing_aims import ROUTING_ROWS
from capsdist.bench.scaling_aims import SCALING_ROWS
from capsdist.errors import DataError, DocumentError
from capsdist.storage.documents import parse_document, read_file

__all__ = ["documents_of_results", "goals_table", "newest_records", "number", "results_table", "with_table"]

_MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", flags=re.DOTALL)


class _Record(BaseModel):
    """What the table takes from a record, which has more."""

    model_config = ConfigDict(extra="allow")

    what: str
    written: str
    figures: dict[str, Any]
    hardware: dict[str, Any]


_ERRORS = (
    Row("4,000 real digits, a few epochs (`make quickstart`)", most(3.5), "quickstart", headline=True),
    Row("MNIST, CapsNet r=3, after 1 epoch (cut and continued)", most(2.5), "mnist-1-epoch"),
    Row("CIFAR-10, capsules over a small residual network, 10 epochs", most(20), "cifar10-resnet-cpu"),
    Row("the same, seconds on the machine", most(3600), "cifar10-resnet-cpu", "wall_s", " s"),
    Row("Tiny-ImageNet, 200 classes, 161 M weights, 300 steps of 32", most(99), "tiny-imagenet-200"),
    *CAPSULE_ROWS,
    *PAPER_ROWS,
    *ROUTING_ROWS,
)


def _routing(label: str, aim: Aim | None, figure: str, *, headline: bool = False) -> Row:
    return Row(label, aim, "routing", figure, "", "ratio of medians", "figures.num_runs", headline)


def _counted(
    label: str, aim: Aim | None, figure: str, what: str = "routing", *, headline: bool = False
) -> Row:
    return Row(label, aim, what, figure, "", "counted", headline=headline)


def _votes(label: str, name: str, speedup: str, aim: Aim | None, kept: Aim | None = None) -> tuple[Row, Row]:
    """Return the rows of another routing than the paper's: time and kept bytes of its reference over ours."""
    runs = f"figures.num_{name}_runs"
    over = "its matrix [J, I, I]" if name == "attention" else "stored votes"
    return (
        Row(f"{label}, speed-up over {over}", aim, "routing", speedup, "", "ratio of medians", runs),
        _counted(f"{label}, bytes kept with stored votes over ours", kept, f"{name}_saved_bytes_ratio"),
    )


_COSTS = (
    _routing("routing, speed-up over the textbook form", least(5), "speedup_vs_reference", headline=True),
    _routing("routing, speed-up over the full-shape form", least(10), "speedup_vs_full_shape"),
    _routing("routing, share of the matrix product's rate", least(0.22), "share_of_gemm_rate"),
    _counted("routing, bytes saved for backward per image, r=10", most(50_000), "saved_bytes_per_image_r10"),
    _counted("routing, peak bytes, 128 images", most(64_000_000), "peak_bytes"),
    _counted("routing, peak bytes, 128 images, CIFAR-10 network", most(400_000_000), "cifar10_peak_bytes"),
    _counted(
        "routing, memory of the textbook form over ours", least(8), "memory_ratio_vs_reference",
        headline=True,
    ),
    *_votes("EM routing, `smallnorb_em_small`", "em", "em_speedup_vs_reference", least(3), least(10)),
    *_votes("convolutional dynamic routing", "conv", "conv_speedup_vs_unfold", least(2), least(10)),
    *(
        row
        for name, text in LATER_ROUTINGS.items()
        for row in _votes(f"{text}, MNIST network", name, f"{name}_speedup_vs_reference", None)
    ),
    Row(
        "MNIST training step, r=3 over r=1", most(1.15), "routing", "step_r3_over_r1", "",
        "ratio of medians", "figures.num_step_runs",
    ),
    *PIPELINE_ROWS,
    *SCALING_ROWS,
    _counted("9 injected faults: samples lost", most(0), "samples_lost", what="faults"),
    _counted("9 injected faults: samples repeated", most(0), "samples_doubled", what="faults"),
    _counted(
        "9 injected faults: runs whose final weights differ", most(0), "runs_diverged", "faults",
        headline=True,
    ),
    _counted("`make test`: failed tests", most(0), "failed", what="suite"),
    Row("`make test`, when all is installed", most(1500), "suite", "whole_s", " s"),
    _counted("`make test` beside two busy loops: failed tests", most(0), "failed", what="suite-loaded"),
    _counted("quick suite with Python 3.12: failed tests", most(0), "failed", what="suite-python-3.12"),
    _counted("quick suite with Python 3.13: failed tests", most(0), "failed", what="suite-python-3.13"),
    Row(
        "from the crash of a worker to the next step", most(30), "recovery", "worker_s", " s",
        "median", "config.repeats", headline=True,
    ),
    Row(
        "from the loss of a host to the next step, with a spare host", most(60), "recovery", "host_s", " s",
        "median", "config.repeats",
    ),
    Row("search of 12 trials, killed once and continued", most(1_200), "tune", "whole_s", " s"),
    Row(
        "`import capsdist`, interpreter included", most(1), "startup", "import_s", " s",
        "median", "config.repeats",
    ),
    Row(
        "`python jobs/train_cifar.py --check`", most(1), "startup", "check_s", " s",
        "median", "config.repeats",
    ),
    Row("`make quickstart` with installation (bf16)", most(600), "quickstart", "whole_s", " s"),
    Row("training of `make quickstart` in fp32, AVX2 only", None, "quickstart-fp32", "wall_s", " s"),
    *GPU_ROWS,
    Row("GPU: training of `make quickstart`, images/s", None, "quickstart-gpu", "images_per_s", ""),
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


def results_table(records: Path, *, links: str = "", headlines: bool = False) -> str:
    """Return the results as Markdown: error and cost, aim, figure and its kind, machine and record.

    A figure that misses its aim says so; an interval is Wilson's, of 95 percent. `links` is the path of
    `records` seen from the document; `headlines` keeps the rows that the README of the project shows.
    """
    newest = newest_records(records)
    head = ["| {} | aim | measured | that is | machine | record |", "|---|---|---|---|---|---|"]
    parts = [
        "\n".join([head[0].format(title), head[1], *(_line(row, newest, links) for row in rows)])
        for title, chosen in (("test error", _ERRORS), ("cost", _COSTS))
        if (rows := [row for row in chosen if row.headline or not headlines])
    ]
    return "\n\n".join(parts) + "\n"


def documents_of_results(root: Path) -> dict[Path, str]:
    """Return the documents of the checkout `root` that hold a table of results, as they have to be."""
    records = root / "jobs" / "records"
    tables = {
        root / "README.md": results_table(records, links="jobs/records/", headlines=True),
        records / "README.md": results_table(records),
    }
    return {document: with_table(document.read_text(), table) for document, table in tables.items()}


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


def _line(row: Row, newest: Mapping[str, tuple[str, dict[str, Any]]], links: str) -> str:
    folder, record = newest.get(row.what or "", ("", {}))
    value = record.get("figures", {}).get(row.figure)
    aim = row.aim or "-"
    if isinstance(aim, Aim):
        aim = f"{aim.bound} {number(aim.value)}{row.unit}"
    if value is None:
        return f"| {row.label} | {aim} | not run | | | |"
    measured = f"{number(value)}{row.unit}"
    if isinstance(row.aim, Aim) and row.aim.missed_by(value):
        measured = f"**{measured}, missed**"
    measured += _interval(row, record["figures"])
    link = f"[{record['written'][:10]}]({links}{folder})"
    kind = _kind(row, record)
    return f"| {row.label} | {aim} | {measured} | {kind} | {_machine(record['hardware'])} | {link} |"


def _interval(row: Row, figures: Mapping[str, Any]) -> str:
    """Return the 95 % interval of the test error of one network where the record has it."""
    found = None
    if row.figure.partition(" on ")[0] == "error_percent":
        found = figures.get(row.figure.replace("error_percent", "error_interval_percent"))
    return "" if found is None else f" ({number(found[0])} to {number(found[1])})"


def _kind(row: Row, record: Mapping[str, Any]) -> str:
    """Return what kind of figure it is, with the number of runs where the record has it."""
    section, _, name = row.runs.partition(".")
    runs = record.get(section, {}).get(name) if row.runs else None
    return row.kind if runs is None else f"{row.kind} of {number(runs)}"


def _machine(hardware: Mapping[str, Any]) -> str:
    return str(hardware.get("gpu") or f"{hardware['cpu']}, {hardware['num_cores']} cores")
