"""Smoke runs, which show that everything works: a few steps of a mini network on a few images, no result."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from capsdist.cli.further import evaluation_name
from capsdist.config import Config, Section, with_values
from capsdist.config.models import find_family
from capsdist.config.presets.mnist import SMALLER
from capsdist.errors import RunError
from capsdist.launch.preflight import absolute
from capsdist.runs.rundir import OVERVIEW, REPORT, RunFolder, run_place

__all__ = ["Size", "SmokeOptions", "check_left", "of_size", "smoke_config", "smoke_values"]

Size = Literal["full", "quarter", "mini"]
_CHANNELS: dict[str, dict[str, dict[str, object]]] = {
    "capsnet": SMALLER,
    "baseline_cnn": {  # half and a quarter of the widths, our choice
        "quarter": {"model.conv_channels": (128, 128, 64), "model.dense_units": (164, 96)},
        "mini": {"model.conv_channels": (64, 64, 32), "model.dense_units": (82, 48)},
    },
    "pooling_cnn": {
        "quarter": {"model.conv_channels": (256, 128), "model.dense_units": 512},
        "mini": {"model.conv_channels": (128, 64), "model.dense_units": 256},
    },
    "em_capsnet": {"mini": {"model.conv_channels": 16, "model.primary_types": 2}},
    "conv_capsnet": {"mini": {"model.conv_channels": 16, "model.primary_types": 4}},
    "transforming_autoencoder": {"mini": {"model.capsules": 5}},
    "resnet_capsnet": {
        "mini": {
            "model.stem_channels": (16, 32, 64), "model.stem_blocks": (0, 1, 1),
            "model.primary_types": 8, "model.primary_stride": 2,
        },
    },
}  # fmt: skip
_SMOKE: dict[str, object] = {
    "train.max_steps": 2, "train.epochs": 1, "train.global_batch_size": 16, "train.num_workers": 1,
    "train.log_every_steps": 1, "train.loggers": ("jsonl",), "train.dry_run": 0,
}  # fmt: skip


class SmokeOptions(Section):
    """What every job has that trains."""

    smoke: bool = False
    """Show in a minute that everything works: few steps of mini networks on few images, nothing is kept."""


def of_size(config: Config, size: Size) -> Config:
    """Return `config` with a network of `size`, without the options of `size` where its family has none."""
    return with_values(config, _CHANNELS.get(config.model.kind, {}).get(size, {}))


@contextlib.contextmanager
def smoke_values(root: str, sets: Mapping[str, Sequence[str]]) -> Iterator[dict[str, object]]:
    """Yield what is laid over the configurations of a smoke run, whose folder goes with the context.

    sets: the splits that are needed of each data set; a few images of them are packed. root: where packed
    sets are looked for.
    """
    from capsdist.data.sets.few import pack_few

    with tempfile.TemporaryDirectory(prefix="smoke-", ignore_cleanup_errors=True) as folder:
        data = str(Path(folder, "data"))
        for name, splits in sets.items():
            print(f"smoke: packed {pack_few(name, splits, root, data)}", flush=True)
        yield {**_SMOKE, "data.root": data, "train.storage": str(Path(folder, "runs"))}


@contextlib.contextmanager
def smoke_config(config: Config) -> Iterator[Config]:
    """Yield the configuration of a smoke run of `config`; see `smoke_values`."""
    data = config.data
    sets = {data.name: [*data.splits.values()]} if data.name else {}
    for place in data.further_tests:
        name, _, split = place.partition("/")
        sets[name] = [*sets.get(name, []), split]
    with smoke_values(data.root, sets) as values:
        yield with_values(of_size(config, "mini"), values)


def check_left(config: Config) -> None:
    """Check that the run of `config`, which is done, has left all that a run leaves.

    Raises:
        RunError: naming what is not there.
    """
    run = RunFolder(run_place(absolute(config)))
    names = [OVERVIEW, REPORT, *map(evaluation_name, config.data.further_tests)]
    lacking = [name for name in names if run.files.read(name) is None]
    lacking += [] if run.steps_saved() else ["checkpoint"]
    result = run.read_result()
    untested = result is None or result.error_percent is None
    lacking += ["tested error"] if untested and find_family(config.model.kind).classifies else []
    if lacking:
        raise RunError(f"{run}: the smoke run has left no {', no '.join(lacking)}; the lines above say why")
