"""report.html of a run: figures, curves, confusions, images, cost by layer, configuration, machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from capsdist.analysis.drawing import Samples, class_names, of_kind, shown_split
from capsdist.analysis.report.confusions import Confusions
from capsdist.analysis.report.facts import RunFacts, Spent
from capsdist.analysis.report.pages import page, png
from capsdist.analysis.report.plots import drawn, plots_of_run
from capsdist.analysis.report.words import duration, percent, short
from capsdist.config import PRESETS, Config, get_preset
from capsdist.console import Log
from capsdist.errors import CapsdistError
from capsdist.runs.rundir import REPORT

if TYPE_CHECKING:
    from capsdist.analysis.overview import Shown

__all__ = ["write_report"]


def write_report(
    facts: RunFacts,
    *,
    data_root: str | Path | None = None,
    shown: Shown | None = None,
    images: bool = True,
    log: Log = print,
) -> str:
    """Write report.html into the folder of a run, one file that needs no other; return its path or URL.

    Images need the newest checkpoint and the packed test images, below `data_root` in place of the run's
    data.root; without them, or without `images`, the page says why there are none. `shown`: what
    `capsdist.analysis.overview.read_shown` has returned. `log` is told of damage.

    Raises:
        RunError: the page cannot be written.

    Example:
        >>> write_report(read_facts("runs/mnist"))
        'runs/mnist/report.html'
    """
    why_none = "" if images else "They were left out, or the run has not come to its end."
    if images and shown is None:
        from capsdist.analysis.overview import read_shown  # late: torch

        try:
            shown = read_shown(facts.files, facts.rows, data_root=data_root, log=log)
        except CapsdistError as error:
            why_none = str(error)
    facts.files.write(REPORT, report_page(facts, shown, why_none))
    return facts.files.path(REPORT)


def report_page(facts: RunFacts, shown: Shown | None, why_none: str) -> bytes:
    """Return the page; why_none: why there are no pictures, where `shown` is None."""
    spent = Spent.of(facts)
    classes = shown.classes if shown else facts.classes
    table = facts.measured.get("confusion")
    return page(
        "report.html",
        title=facts.name,
        facts=facts,
        tiles=list(_tiles(facts, spent)),
        plots=[drawn(plot) for plot in plots_of_run(facts.rows)],
        confusions=Confusions.of(table, classes) if table else None,
        cells=list(_cells(shown.samples, classes)) if shown else [],
        shown_split=shown_split(facts.rows),
        why_none=why_none,
        layers=facts.cost.layers if facts.cost else [],
        spent=spent,
        sections=list(_sections(facts.config)),
        machine=list(_machine(facts)),
        starts=of_kind(facts.rows, "start"),
    )


@dataclass(frozen=True)
class _Tile:
    """A figure of the run: what it is, the figure, and a line below."""

    name: str
    figure: str
    line: str = ""


def _tiles(facts: RunFacts, spent: Spent) -> Iterator[_Tile]:
    measured, start = facts.measured, facts.start
    if measured:
        interval = measured.get("error_interval_percent")  # rows of earlier versions have none
        of_labels = measured.get("label_error_percent")
        parts = [
            f"{measured['num_images']:,} {facts.measured_on} images",
            *([f"95 %: {interval[0]:.2f} to {interval[1]:.2f} %"] if interval else []),
            *([f"{percent(of_labels)} of their labels"] if of_labels is not None else []),
        ]
        if "error_percent" in measured:
            yield _Tile("Error", percent(measured["error_percent"]), "; ".join(parts))
        else:  # of a family that does not classify
            yield _Tile("Loss", f"{measured['loss']:.4g}", "; ".join(parts))
    else:
        yield _Tile("Error", "–", "not tested yet")
    total = start.get("total_steps", 0)
    epochs = max((row.get("epoch") or 0.0 for row in facts.rows), default=0.0)
    batch = facts.config.train.global_batch_size
    yield _Tile("Steps", f"{facts.step:,}", f"of {total:,}; {epochs:.3g} epochs, {batch:,} images a step")
    rate = f"{spent.num_images / spent.train_s:,.0f} a second" if spent.train_s else "none yet"
    yield _Tile("Images", f"{spent.num_images:,}", rate)
    starts = "" if spent.num_starts < 2 else f", {spent.num_starts} starts"
    yield _Tile("Wall time", duration(spent.wall_s), f"{duration(spent.train_s)} of it in steps{starts}")
    if "num_parameters" in start:
        network = start.get("network", start.get("model", ""))
        yield _Tile("Parameters", short(start["num_parameters"]), f"{start['num_parameters']:,}; {network}")
    if spent.flop:
        each = short(spent.flop.total / max(spent.num_images, 1), "FLOP")
        rates = [row["mfu_percent"] for row in of_kind(facts.rows, "train") if row.get("mfu_percent")]
        use = f"; {sum(rates) / len(rates):.1f} % of the peak" if rates else ""
        yield _Tile("Compute", short(spent.flop.total, "FLOP"), f"{each} an image{use}")


@dataclass(frozen=True)
class _Cell:
    """An image, its reconstruction or None, what it is and what it was read as where that differs."""

    image: str
    reconstruction: str | None
    label: str
    read: str | None
    decoded: str


def _cells(samples: Samples, classes: Sequence[str]) -> Iterator[_Cell]:
    for n, (label, read, target) in enumerate(
        zip(samples.labels, samples.predictions, samples.targets, strict=True)
    ):
        names = [class_names(numbers, classes) for numbers in (label, read, target)]
        drawn_again = None if samples.reconstructions is None else png(samples.reconstructions[n])
        other = names[1] if names[1] != names[0] else None
        yield _Cell(png(samples.images[n]), drawn_again, names[0], other, names[2])


@dataclass(frozen=True)
class _Field:
    """A field of the configuration; preset: the value that its preset gives, where it is another."""

    name: str
    value: str
    meaning: str
    preset: str | None


def _sections(config: Config) -> Iterator[tuple[str, list[_Field]]]:
    """Yield the sections of a configuration: name, and fields."""
    base = get_preset(config.preset) if config.preset in PRESETS else None
    for name in Config.model_fields:
        section = getattr(config, name)
        if not isinstance(section, BaseModel):
            continue
        usual = getattr(base, name, None)
        fields = [
            _Field(
                field,
                _text(getattr(section, field)),
                " ".join((about.description or "").split()),
                _text(getattr(usual, field))
                if hasattr(usual, field) and getattr(usual, field) != getattr(section, field)
                else None,
            )
            for field, about in type(section).model_fields.items()
        ]
        if fields:
            yield name, fields


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)


def _machine(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield what the last start ran on: name and value."""
    start = facts.start
    names = {
        "device": "device", "processor": "processor", "world_size": "workers",
        "torch_threads": "threads a worker", "engine": "engine", "precision": "precision", "speed": "step",
        "variant": "variant of the step", "microbatch_size": "images of a microbatch",
        "resident": "training images kept",
    }  # fmt: skip
    for field, name in names.items():
        if start.get(field) not in (None, ""):
            yield name, f"{start[field]:,}" if isinstance(start[field], int) else str(start[field])
    yield from ((name, version) for name, version in facts.versions.items())
    if facts.result:
        yield "since the last start, Ray's included", duration(facts.result.wall_s)
