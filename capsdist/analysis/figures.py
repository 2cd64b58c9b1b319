"""The figures of the paper, drawn of runs and checkpoints: PNG, SVG, and their numbers as JSON."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, get_args

from capsdist.analysis.decoding import draw_classes, draw_perturbations, draw_triples
from capsdist.analysis.known_shifts import draw_known_shifts
from capsdist.analysis.over_training import draw_logit_changes, draw_losses
from capsdist.analysis.overlays import draw_overlays
from capsdist.analysis.routed import draw_coupling
from capsdist.analysis.subject import Drawn, NotDrawn, Subject, open_subject
from capsdist.console import Log
from capsdist.errors import ConfigError, Problem
from capsdist.runs.files import open_files
from capsdist.storage import join

__all__ = ["Name", "draw_figures"]

Name = Literal[
    "figure_3", "figure_4", "figure_5", "figure_a1", "figure_a2", "reconstructions", "coupling",
    "known_shifts",
]  # fmt: skip

_OF_A_NETWORK: dict[Name, Callable[[Subject, int], Iterator[Drawn]]] = {
    "figure_3": draw_triples,
    "reconstructions": draw_classes,
    "figure_4": draw_perturbations,
    "figure_5": draw_overlays,
    "coupling": draw_coupling,
    "known_shifts": draw_known_shifts,
    "figure_a1": draw_logit_changes,
}


def draw_figures(
    places: Sequence[str],
    to: str,
    *,
    only: Sequence[Name] = (),
    split: str | None = None,
    best: bool = False,
    num_images: int = 10,
    note: str = "",
    log: Log = print,
) -> list[str]:
    """Draw the figures of runs or checkpoints; return the files that were written, in order.

    Figures of one network are written to a folder of the name of its run (and checkpoint) below `to`, figure
    A.2, which compares the training losses of all, to `to` itself. Runs on the CPU.

    Args:
        places: paths or s3:// URLs of runs or checkpoints; of a run the newest, or with `best` the one of the
            lowest validated error.
        to: path or s3:// URL of a folder.
        only: figures to draw; default: all that the networks and their images allow.
        split: path or s3:// URL of the split to take images from; default: the test split of each run.
        num_images: images of a figure, where it is not the paper that decides.
        note: stands in every heading.
        log: is told of each figure that is left out, with the reason.

    Raises:
        ConfigError: no place, two of one name, an unknown figure, `num_images` below 1.
        NotDrawn: a figure of `only` cannot be drawn of one of the places.
        CheckpointError, DataError, RunError: a place, a split or `to` cannot be used.
    """
    names = _checked(places, only, num_images)
    open_files(to).check_writable()
    written, subjects = [], []
    for place, name in zip(places, names, strict=True):
        subject = open_subject(place, split, best=best, note=note, log=log)
        subjects.append(subject)
        open_files(join(to, name)).check_writable()  # which creates it
        for figure, draw in _OF_A_NETWORK.items():
            if not only or figure in only:
                drawn = _drawn(f"{figure} of {name}", partial(draw, subject, num_images), bool(only), log)
                written += [path for each in drawn for path in _write(each, join(to, name))]
    if not only or "figure_a2" in only:
        drawn = _drawn("figure_a2", lambda: [draw_losses(subjects)], bool(only), log)
        written += [path for each in drawn for path in _write(each, to)]
    return written


def _checked(places: Sequence[str], only: Sequence[str], num_images: int) -> list[str]:
    """Return the name of the folder for each place.

    Raises:
        ConfigError: with every fault.
    """
    names = [_name(place) for place in places]
    faults = []
    if not places:
        faults.append(Problem("runs", (), "is empty", "give a run, a checkpoint, or --smoke"))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        faults.append(Problem("runs", twice[0], "is the name of two", "draw them with another --to each"))
    if unknown := [name for name in only if name not in get_args(Name)]:
        faults.append(Problem("only", unknown[0], "is no figure", f"there are {', '.join(get_args(Name))}"))
    if num_images < 1:
        faults.append(Problem("num_images", num_images, "must be at least 1", "the default is 10"))
    if faults:
        raise ConfigError(faults)
    return names


def _name(place: str) -> str:
    """Return the name of the run at `place`; of a checkpoint that of its run and its own."""
    files = open_files(place)
    above = files.parent
    return f"{above.name}-{files.name}" if files.name.startswith("step_") and above else files.name


def _drawn(what: str, draw: Callable[[], Iterable[Drawn]], asked: bool, log: Log) -> Iterator[Drawn]:
    """Yield what `draw` yields; where it cannot be drawn, `log` is told, unless it was asked for.

    Raises:
        NotDrawn: it was asked for and cannot be drawn.
    """
    try:
        yield from draw()
    except NotDrawn as error:
        if asked:
            raise NotDrawn(f"{what} cannot be drawn: {error}") from None
        log(f"left out: {what}: {error}")


def _write(drawn: Drawn, folder: str) -> list[str]:
    """Write a figure as PNG and SVG and its numbers as JSON below `folder`; return the three files."""
    import matplotlib

    files = open_files(folder)
    contents = {"json": (json.dumps(dict(drawn.numbers), indent=1) + "\n").encode()}
    with matplotlib.rc_context({"svg.hashsalt": drawn.name}):  # equal figures are equal files
        for kind in ("png", "svg"):
            content = io.BytesIO()
            drawn.figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else None)
            contents[kind] = content.getvalue()
    for kind, content in contents.items():
        files.write(f"{drawn.name}.{kind}", content)
    return [files.path(f"{drawn.name}.{kind}") for kind in contents]
