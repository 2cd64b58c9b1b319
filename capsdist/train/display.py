"""Show a run to a person from its event rows.

On a terminal a progress line that stays at the bottom, with one line a validation above it; elsewhere (a
pipe, a log file, a Ray job) plain lines without control codes. Both end with a table and one last line that
holds ``error_percent X``.
"""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO

from capsdist.console import print_to
from capsdist.train.screen import Screen

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.spinner import Spinner
    from rich.text import Text

__all__ = ["Display"]

Row = dict[str, Any]

_MIN_BAR = 4


class Display(Screen):
    """Shows a run; call it with each row, in order. Unknown kinds of rows are passed over.

    plain: None chooses by the output: plain unless it is a terminal and no Ray job. interval_s: shortest
    time between two plain progress lines, in seconds; all other lines always appear.

    Example:
        >>> with Display() as display:
        ...     run_training(config, events=display, ...)
    """

    def __init__(
        self, file: TextIO | None = None, *, plain: bool | None = None, interval_s: float = 5.0
    ) -> None:
        super().__init__(file, plain=plain)
        self._interval_s = interval_s
        self._start: Row = {}
        self._row: Row | None = None  # the last one of training
        self._best: float | None = None
        self._last_line_s = -math.inf

    def _show_note(self, row: Row) -> None:
        """A message that stays."""
        self.close()
        self._print(_literal(row["message"]))

    def _show_status(self, row: Row) -> None:
        """What is going on while there is nothing to measure yet; on a terminal it turns and then goes."""
        if self._plain:
            self._show_note(row)
            return
        from rich.live import Live

        self._open(Live(_spinner(f"{row['message']} ..."), console=self._rich(), transient=True))

    def _show_start(self, row: Row) -> None:
        self.close()
        self._start = row
        self._print(f"[bold]{_literal(row['run'])}[/]  {_network(row)} on {_literal(row['data'])}")
        steps = f"{row['total_steps']:,} steps of {row['global_batch_size']} images{_resident(row)}"
        self._print(f"[dim]{_hardware(row)}; {steps}[/]")
        if row["resumed_step"]:
            self._print(f"[dim]continues after step {row['resumed_step']:,}[/]")
        if not self._plain:
            self._open_live(row)

    def _show_progress(self, row: Row) -> None:
        """How far a validation or test is that takes longer."""
        message = f"{row['doing']}: {row['done']:,} of {row['total']:,} images"
        if self._live is None:
            self._print(_literal(message))
        else:
            self._live.update(_spinner(message))

    def _show_train(self, row: Row) -> None:
        self._row = row
        if self._live:
            self._live.update(_Progress(self._start, row))
        elif time.monotonic() - self._last_line_s >= self._interval_s:
            self._last_line_s = time.monotonic()
            self._print(f"step {row['step']:,}/{self._start['total_steps']:,}  " + "  ".join(_figures(row)))

    def _show_validation(self, row: Row) -> None:
        measured = row.get("error_percent", row["loss"])  # a family that does not classify has the loss alone
        better = self._best is None or measured < self._best
        self._best = measured if better else self._best
        colour = "bold green" if better else "yellow"
        split = self._start.get("validation_split", self._start["test_split"])  # absent: version 0.1
        self._print(
            f"[cyan]epoch {row['epoch']:<5.3g}[/] step {row['step']:<7,} "
            f"[{colour}]{_error(row, '<5.2f')}loss {row['loss']:<8.3g}[/] "
            f"[dim]{_literal(split)}, {row['num_images']:,} images[/]"
        )
        if self._live and self._row:
            self._live.update(_Progress(self._start, self._row))

    def _show_phases(self, row: Row) -> None:
        """What the steps of a dry run took; the memory is that of tensors on a GPU, else of the process."""
        self.close()
        seconds, peaks = row["seconds"], row["peak_bytes"]
        self._print(f"{'phase':<10}{'ms per step':>13}{'share':>8}{'peak memory':>15}")
        total = sum(seconds.values())
        for name, value in seconds.items():
            share = value / total if total else 0.0
            self._print(f"{name:<10}{1e3 * value:>13,.1f}{share:>8.0%}{_mebibytes(peaks[name]):>15}")
        self._print(f"{'step':<10}{1e3 * total:>13,.1f}{'':>8}{_mebibytes(max(peaks.values())):>15}")
        steps = _plural(row["num_steps"], "step")
        self._print(
            f"{row['images_per_s']:,.0f} images/s over {steps}; of each figure the most of any worker"
        )

    def _show_failure(self, row: Row) -> None:
        self.close()
        message = _literal(row["message"])
        self._print(f"[yellow]a worker failed, starting again from the newest checkpoint:[/] {message}")

    def _show_end(self, row: Row) -> None:
        self.close()
        self._print("")
        self._print_table(row)
        self._print("")
        if row["stopped"]:
            self._print(
                _literal(f"stopped after step {row['step']:,}: start {row['run']} again to continue it")
            )
        if row.get("num_images") is not None:
            where = f"({_interval(row)}{row['test_split']}, {row['num_images']:,} images, run {row['run']})"
            figures = _error(row) or f"loss {row['loss']:.4g}  "
            self._print(f"[bold]{figures}[/]{_literal(where)}")

    def _print_table(self, row: Row) -> None:
        error = "-" if row["error_percent"] is None else f"{row['error_percent']:.2f}"
        cells = {
            "run": row["run"],
            "steps": f"{row['step']:,}",
            "images/s": f"{row['images_per_s']:,.0f}",
            "error_percent": error,
            "checkpoint": row["checkpoint"] or "-",
            "training time": _clock(row["wall_time_s"]),
        }
        widths = {name: max(len(name), len(cell)) for name, cell in cells.items()}
        left = ("run", "checkpoint")

        def line(values: dict[str, str]) -> str:
            return "   ".join(
                value.ljust(widths[name]) if name in left else value.rjust(widths[name])
                for name, value in values.items()
            )

        self._print(f"[dim]{line({name: name for name in cells})}[/]")
        self._print(f"[dim]{'-' * len(line(cells)) if self._plain else '─' * len(line(cells))}[/]")
        self._print(_literal(line(cells)))

    def _open_live(self, start: Row) -> None:
        from rich.live import Live

        first = {"step": start["resumed_step"], "eta_s": None}
        line = _Progress(start, first)
        self._open(Live(line, console=self._rich(), refresh_per_second=4, transient=True))

    def _print(self, markup: str) -> None:
        """Print one line of console markup; without it, and never wrapped, where output is plain."""
        if self._plain:
            print_to(self._file, _without_markup(markup))
        else:
            self._rich().print(markup, soft_wrap=True)


class _Progress:
    """The line at the bottom of the terminal: bar, step, figures of the last row; the time left runs."""

    def __init__(self, start: Row, row: Row) -> None:
        self._start, self._row, self._at = start, row, time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        step, total = self._row["step"], self._start["total_steps"]
        figures = [f"{step:,}/{total:,}"]
        if self._row["eta_s"] is None:
            figures.append("first steps ...")
        else:
            left_s = max(self._row["eta_s"] - (time.monotonic() - self._at), 0.0)
            figures += _figures(self._row | {"eta_s": left_s})
        # Where the line is too narrow, what stands furthest right goes.
        while len(figures) > 1 and len("  ".join(figures)) + _MIN_BAR + 2 > options.max_width:
            figures.pop()
        width = max(options.max_width - len("  ".join(figures)) - 2, 0)
        yield Text.assemble(*_bar(step / total, min(width, 40)), "  ", "  ".join(figures), no_wrap=True)


def _bar(share: float, width: int) -> list[Text | tuple[str, str]]:
    """A bar of `width` characters, drawn to half a character."""
    halves = round(2 * width * share)
    done = "━" * (halves // 2) + ("╸" if halves % 2 else "")
    return [(done, "green"), ("━" * (width - len(done)), "bright_black")]


def _figures(row: Row) -> list[str]:
    return [
        f"{row['images_per_s']:,.0f} images/s",
        f"loss {row['loss']:.3g}",
        *([f"error_percent {row['error_percent']:.2f}"] if "error_percent" in row else []),
        f"eta {_clock(row['eta_s'])}",
    ]


def _interval(row: Row) -> str:
    """Return the interval of the error; rows of earlier versions have none."""
    ends = row.get("error_interval_percent")
    return "95 % interval {:.2f} to {:.2f}, ".format(*ends) if ends else ""


def _error(row: Row, form: str = ".2f") -> str:
    """Return the error, and where images have several labels that of single ones, two spaces behind each.

    "" of a family that does not classify.
    """
    error, of_labels = (row.get(name) for name in ("error_percent", "label_error_percent"))
    also = "" if of_labels is None else f"label_error_percent {of_labels:.2f}  "
    return "" if error is None else f"error_percent {error:{form}}  {also}"


def _network(row: Row) -> str:
    return f"{row['network']} of {row['num_parameters']:,} parameters"


def _hardware(row: Row) -> str:
    threads = f" ({_plural(row['torch_threads'], 'thread')} each)" if row["device"] == "cpu" else ""
    workers = _plural(row["world_size"], "worker")
    return f"{workers} on {row['device']}{threads}, engine {row['engine']}, {row['precision']}"


def _resident(row: Row) -> str:
    """Return where the training images are kept, if they are; rows of earlier versions do not say."""
    where = {"device": ", kept in memory", "shared": ", kept in shared memory"}
    return where.get(row.get("resident", "never"), "")


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, without leading zeros: 7 s is 0:07."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")


def _literal(text: str) -> str:
    """Return `text` as markup that shows it as it is, brackets included."""
    from rich.markup import escape

    return escape(text)


def _spinner(text: str) -> Spinner:
    from rich.spinner import Spinner
    from rich.text import Text

    return Spinner("dots", text=Text(text, style="dim"))


def _without_markup(markup: str) -> str:
    from rich.text import Text

    return Text.from_markup(markup, emoji=False).plain.rstrip()
