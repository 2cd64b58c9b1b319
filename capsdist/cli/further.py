"""The tests of a run that is done on further splits, `data.further_tests`; a failure there is only told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from capsdist.config import Config, with_values
from capsdist.data.format.packed import INDEX_NAME
from capsdist.data.sets.spec import DATASETS, find_dataset
from capsdist.errors import CapsdistError
from capsdist.launch.preflight import absolute, packing_remedy
from capsdist.runs.files import open_files
from capsdist.runs.retention import checkpoint_name
from capsdist.runs.rundir import RunFolder, run_place
from capsdist.storage import join, open_folder

if TYPE_CHECKING:
    from capsdist.analysis.evaluation import StoredEvaluation

__all__ = ["evaluation_name", "further_figures", "measure_further", "missing_further"]


def evaluation_name(place: str) -> str:
    """Return the name of the file of a run that has its evaluation on the split SET/SPLIT."""
    return f"evaluation-{place.replace('/', '-')}.json"


def missing_further(config: Config) -> list[str]:
    """Return a line for each split of `data.further_tests` that is not packed, with the remedy."""
    return [line for place in config.data.further_tests if (line := _missing(config, place))]


def measure_further(config: Config, show: Callable[[dict[str, Any]], None], *, anew: bool) -> None:
    """Measure the newest checkpoint of the run of `config` on each split of `data.further_tests`.

    The error is shown, and the evaluation becomes a file of the run, see `evaluation_name`. anew: measure
    although there is such a file of this checkpoint and split. On this machine, in this process.
    """
    from capsdist.cli.evaluate import error_text

    config = absolute(config)
    for place in config.data.further_tests:
        try:
            if not (note := _missing(config, place, _title(place))):
                show({"kind": "status", "message": f"testing on {place}"})
                stored, licence = _measured(config, place, show, anew)
                note = f"{place}: {error_text(stored)}" + (f"; {licence}" if licence else "")
        except CapsdistError as error:
            note = f"warning: {place}: not measured ({error})"
        show({"kind": "note", "message": note})


def further_figures(run: RunFolder) -> dict[str, Any]:
    """Return `error_percent on SET/SPLIT`, its 95 % interval and `num_images on SET/SPLIT`, for a record.

    Of all splits besides its own on which the newest checkpoint of the run was tested.
    """
    found = dict[str, Any]()
    for file in run.files.sizes("evaluation-"):
        if stored := _kept(run, file):
            place = "/".join(stored.split.rstrip("/").split("/")[-2:])
            for name in ("error_percent", "error_interval_percent", "num_images"):
                found[f"{name} on {place}"] = getattr(stored, name)
    return found


def _kept(run: RunFolder, file: str) -> StoredEvaluation | None:
    """Return the evaluation in `file` of the run if it is whole and of the newest checkpoint."""
    from capsdist.analysis.evaluation import read_evaluation

    with contextlib.suppress(CapsdistError):
        stored = read_evaluation(run.files.path(file))
        if checkpoint_name(run.steps_saved()) in stored.checkpoints[0]:
            return stored
    return None


def _missing(config: Config, place: str, title: str = "") -> str | None:
    name, _, split = place.partition("/")
    if open_folder(join(config.data.root, name, split)).read(INDEX_NAME) is not None:
        return None
    remedy = packing_remedy(with_values(config, {"data.name": name}), split)
    return f"{place}{title}: not packed, so the run is not tested on it; {remedy}"


def _title(place: str) -> str:
    name = place.partition("/")[0]
    return f" ({find_dataset(name).title})" if name in DATASETS else ""


def _measured(
    config: Config, place: str, show: Callable[[dict[str, Any]], None], anew: bool
) -> tuple[StoredEvaluation, str]:
    """Return the evaluation on a split, and what the index of the split notes on its images."""
    from capsdist.analysis.evaluation import measure, write_evaluation
    from capsdist.data.format.source import open_split

    split, run = join(config.data.root, *place.split("/")), RunFolder(run_place(config))
    index, file = open_split(split).index, evaluation_name(place)
    licence = getattr(index, "licence", "")
    kept = _kept(run, file)
    if kept and not anew and kept.split_digest == index.digest:
        return kept, licence
    stored = measure(
        [str(run)],
        split,
        device="cpu" if config.train.device == "cpu" else "auto",
        log=lambda text: show({"kind": "status", "message": text}),
    )
    write_evaluation(stored, open_files(str(run)), file)
    return stored, licence
