"""Measure trained networks, and keep what was measured: a study that goes on does not measure again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from capsdist.claims.experiment import BASELINE, CAPSNET, Experiment, Result, Values
from capsdist.claims.settings import Trained
from capsdist.claims.subject import open_subject, read_images
from capsdist.console import Log
from capsdist.data import read_index
from capsdist.errors import DocumentError
from capsdist.runs.checkpoints import opened_checkpoint
from capsdist.runs.files import read_document
from capsdist.storage import Folder, join
from capsdist.storage.documents import dump_json, parse_document, seal
from capsdist.train.manifest import MANIFEST, MODEL, parse_manifest

__all__ = ["MEASUREMENTS", "results_of"]

MEASUREMENTS = "measurements"
"""Folder in that of the study: for each run a document of what was measured of its network."""


class _Measured(BaseModel):
    """Values of an experiment, and all that decides them: weights, images, settings."""

    model_config = ConfigDict(extra="forbid")

    of: dict[str, Any]
    values: dict[str, list[float]]


class _Document(BaseModel):
    """What was measured of one network, by the name of the experiment."""

    model_config = ConfigDict(extra="forbid")

    experiments: dict[str, _Measured] = {}


def results_of(
    experiments: Sequence[Experiment],
    runs: Mapping[str, Trained],
    splits: Sequence[str],
    limit: int | None,
    folder: Folder,
    log: Log,
) -> list[Result]:
    """Return the results of experiments with the networks of `runs`, by the place of each run.

    splits: of the data set, whose first `limit` images (None: all) the experiments get; folder: of the study.
    An experiment is done only where `folder` does not hold its values for the same weights, images and
    settings. A damaged document is passed over with a warning.

    Raises:
        CheckpointError: a run has no whole checkpoint.
        DataError, RunError: images or the storage cannot be read.
    """
    rows: dict[str, dict[str, list[Values]]] = {
        each.name: {CAPSNET: [], BASELINE: []} for each in experiments
    }
    for place, run in runs.items():
        with opened_checkpoint(place, log=log) as (_, checkpoint):
            for name, values in _measured(experiments, run, checkpoint, splits, limit, folder, log).items():
                rows[name][run.network].append(values)
    return [Result.of(each, rows[each.name]) for each in experiments]


def _measured(
    experiments: Sequence[Experiment],
    run: Trained,
    checkpoint: Path,
    splits: Sequence[str],
    limit: int | None,
    folder: Folder,
    log: Log,
) -> dict[str, Values]:
    """Return the values of the experiments with one network."""
    data, name = run.config.data, f"{MEASUREMENTS}/{run.name}.json"
    places = [join(data.root, data.name, split) for split in splits]
    images = lru_cache(None)(lambda: [read_images(run.config, place, limit) for place in places])
    subject = lru_cache(None)(lambda: open_subject(str(checkpoint), log))
    shared = {
        "weights": parse_manifest((checkpoint / MANIFEST).read_bytes()).files[MODEL].xxh3_128,
        "images": [read_index(place).digest for place in places],
        "limit": limit,
    }
    kept = _read(folder, name, log)
    for experiment in experiments:
        assert experiment.measure is not None
        of = {**shared, **experiment.settings}
        known = kept.experiments.get(experiment.name)
        if known is None or known.of != of:
            log(f"{experiment.name}: {run.name}, {sum(len(each.labels) for each in images()):,} images")
            found = experiment.measure(subject(), *images())
            values = {series: list(numbers) for series, numbers in found.items()}
            kept.experiments[experiment.name] = _Measured(of=of, values=values)
            folder.write(name, dump_json(seal(kept.model_dump(mode="json"))))
    return {each.name: kept.experiments[each.name].values for each in experiments}


def _read(folder: Folder, name: str, log: Log) -> _Document:
    try:
        found = read_document(folder, name, lambda content: parse_document(content, _Document, sealed=True))
    except DocumentError as error:
        log(f"warning: measures again: {error}")
        found = None
    return found or _Document()
