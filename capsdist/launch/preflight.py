"""Check data, machine and engine before Ray starts; each problem is one line with value and remedy.

A refusal costs a second here and a minute once workers start. Nothing here imports Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from capsdist.config import Config, problems
from capsdist.config.optim_rules import check_schedule
from capsdist.config.shapes import stored_shape
from capsdist.config.tar_urls import absolute_urls, local_tars
from capsdist.console import Log, command_line
from capsdist.data.format.packed import INDEX_NAME
from capsdist.data.sets.spec import DATASETS, SPLITS, TRAIN_PART, TRAIN_TEST, VALIDATION
from capsdist.errors import ConfigError, DataError, DocumentError, Problem, RunError
from capsdist.runs.initial import initial_state
from capsdist.runs.loggers.names import logger_problems
from capsdist.storage.documents import dump_json, parse_document
from capsdist.storage.place import Place, in_uploaded_package, is_url, url_fault

if TYPE_CHECKING:
    from capsdist.data.stream import StreamIndex

__all__ = [
    "Machine", "Placement", "absolute", "all_problems", "check_data",
    "check_engine", "check_initial", "check_network", "machine_at_a_glance", "missing_data", "overlap",
    "packing_remedy", "place_on_cluster", "place_on_machine", "storage_for_ray", "this_machine",
]  # fmt: skip

_SHARED = "a folder that all machines see, or s3://bucket/prefix"
_OTHER_GPUS = ("/dev/kfd", "/dev/dxg")  # AMD's driver, and Windows' for Linux: without a file for each GPU


@dataclass(frozen=True)
class Machine:
    """Cores and GPUs that a local Ray gets."""

    cores: int
    gpus: int


@dataclass(frozen=True)
class Placement:
    """What every worker gets: its device, how many there are, cores each; and what to tell the user."""

    device: Literal["cpu", "gpu"]
    num_workers: int
    cores: float
    note: str | None = None

    @property
    def threads(self) -> int:
        """Torch threads of a worker without a GPU."""
        return max(1, int(self.cores))

    def __str__(self) -> str:
        """Return it in words."""
        each = "" if self.num_workers == 1 else " each"
        gpu = " and 1 GPU" if self.device == "gpu" else ""
        workers = "1 worker" if self.num_workers == 1 else f"{self.num_workers} workers"
        return f"{workers} with {self.cores:g} CPU{gpu}{each}"


def this_machine() -> Machine:
    """Return what this process may use: cores by affinity and container quota, GPUs that torch can drive."""
    import torch

    return Machine(_num_cores(), torch.cuda.device_count())


def machine_at_a_glance() -> Machine | None:
    """Return the same without torch, GPUs by their device files; None where those do not tell."""
    if any(Path(device).exists() for device in _OTHER_GPUS):
        return None
    num = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        # CUDA takes the devices before the first that is not there
        named = [name.strip() for name in visible.split(",")]
        there = [name.startswith(("GPU-", "MIG-")) or (name.isdigit() and int(name) < num) for name in named]
        num = min(num, [*there, False].index(False))
    return Machine(_num_cores(), num)


def _num_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def absolute(config: Config) -> Config:
    """Return `config` with its places as absolute paths: workers have another working directory."""
    data = config.data.model_copy(
        update={"root": _absolute(config.data.root), "urls": absolute_urls(config.data.urls)}
    )
    places = {"storage": _absolute(config.train.storage)}
    if config.train.init_from is not None:
        places["init_from"] = _absolute(config.train.init_from)
    train = config.train.model_copy(update=places)
    return config.model_copy(update={"data": data, "train": train})


def all_problems(config: Config) -> list[Problem]:
    """Return every problem of `config`, those of its places on this machine included; imports no torch."""
    found = [*problems(config), *logger_problems(config)]
    fields = {problem.field for problem in found}
    return found + [problem for problem in _place_problems(config) if problem.field not in fields]


def _place_problems(config: Config) -> Iterator[Problem]:
    places = {"data.root": config.data.root, "train.storage": config.train.storage}
    if config.train.init_from is not None:
        places["train.init_from"] = config.train.init_from
    for field, place in places.items():
        if is_url(place) and (fault := url_fault(place)):
            yield Problem(field, fault.shown, fault.rule, fault.fix)
        elif (path := _absolute(place)).encode(errors="ignore").decode() != path:
            rule = "has a byte that is not UTF-8, so that the run's files cannot name it"
            fix = f"rename that folder, or set --{field} to the absolute path of a symbolic link to it"
            yield Problem(field, path, rule, fix)
    if config.data.urls.startswith("s3://") and (fault := url_fault(config.data.urls)):
        yield Problem("data.urls", fault.shown, fault.rule, fault.fix)
    storage = _absolute(config.train.storage)
    if not is_url(storage) and in_uploaded_package(storage):
        rule = "lies in the folder to which Ray has uploaded this job's code, and would be lost with it"
        fix = f"set --train.storage or CAPSDIST_STORAGE to {_SHARED}"
        yield Problem("train.storage", config.train.storage, rule, fix)


def storage_for_ray(storage: str) -> str:
    """Return `storage` as Ray has to be given it: it decodes URLs, and takes paths as they are."""
    return Place.parse(storage, error=RunError).uri if is_url(storage) else storage


def packing_remedy(config: Config, split: str) -> str:
    """Return what to do when `split` is missing: the command that packs it, where there is one."""
    data, name, root = config.data, config.data.name, config.data.root
    if not is_url(root) and in_uploaded_package(root):
        return f"set --data.root or CAPSDIST_DATA_ROOT to {_SHARED}"  # what is packed there is lost
    without = ""
    if data.reader == "webdataset":
        without = ', or set --data.name "" for a run without validation'
    elif split == data.validation_split and data.tests_apart:
        without = ", or do without: --data.validation-split None --train.keep-best 0"
    if name not in DATASETS:
        return f"pack it, or set --data.root and --data.name to a packed set{without}"
    packed = SPLITS.get(name, TRAIN_TEST)
    where = "" if root == os.path.abspath("data") else f" --root {root}"
    if split in (VALIDATION, TRAIN_PART) and packed == TRAIN_TEST:
        also = "" if data.train_split == TRAIN_PART else f" and set --data.train-split {TRAIN_PART}"
        return f"pack it with `{command_line(f'pack {name} --validation 0.1{where}')}`{also}{without}"
    if split not in packed:
        return f"pack it yourself (`{command_line(f'pack {name}')}` makes {' and '.join(packed)})"
    unless = without if data.reader == "webdataset" else ""
    return f"pack it with `{command_line(f'pack {name}{where}')}`{unless}"


def overlap(config: Config) -> Problem | None:
    """Return why the images of `data.validation_split` are also trained on, None if they are not.

    Raises:
        DataError: the storage cannot be read.
    """
    from capsdist.storage import join, open_folder

    data = config.data
    if (data.splits.get("train_split"), data.validation_split) != ("train", VALIDATION):
        return None
    if not open_folder(join(data.root, data.name)).folders(TRAIN_PART, INDEX_NAME).get(TRAIN_PART):
        return None
    rule = f"has all images of {VALIDATION!r}, which were taken from it"
    return Problem("data.train_split", data.train_split, rule, f"set --data.train-split {TRAIN_PART}")


def check_data(config: Config) -> StreamIndex:
    """Read the packed splits wholly, of foreign tar files a sample; return what the training images are.

    Raises:
        DataError: a split or tar file is missing, damaged, or not what the network takes; the splits number
            their classes differently.
        ConfigError: `train.global_batch_size` is more than the training images, images for validation are
            among them, or the run ends during its warm-up.
    """
    from capsdist.data import check_split
    from capsdist.train.splits import check_splits, split_folders

    indexes = {
        field: check_split(
            folder,
            image_shape=stored_shape(config),
            num_classes=config.model.num_classes,
            crop=config.data.least_size,
            decode_size=config.data.decode_size,
            remedy=packing_remedy(config, config.data.splits[field]),
        )
        for field, folder in split_folders(config).items()
    }
    if problem := overlap(config):
        raise ConfigError([problem])
    if config.data.reader == "packed":
        check_splits(config, indexes)
        check_schedule(config, indexes["train_split"].num_samples)
        return indexes["train_split"]
    from capsdist.train.streams import web_data

    if missing := _missing_tar(config):
        raise DataError(missing)
    data = web_data(config, indexes)
    data.check_first()
    check_schedule(config, data.num_samples)
    return data


def _missing_tar(config: Config) -> str | None:
    """Return in one line which local file of `data.urls` is not there."""
    for path in local_tars(config.data.urls):
        if not os.path.isfile(path):
            return f"{path}: is not there; correct --data.urls"
    return None


def missing_data(config: Config) -> str | None:
    """Return in one line what data cannot be had, None if all is there; reads no images."""
    from capsdist.storage import join, open_folder

    if config.data.reader == "webdataset" and (missing := _missing_tar(config)):
        return missing
    for split in config.data.splits.values():
        remedy = packing_remedy(config, split)
        try:
            folder = open_folder(join(config.data.root, config.data.name, split))
            if folder.local is None:
                folder.check_readable(remedy=remedy)
            elif not (folder.local / "index.json").is_file():
                return f"{folder}: not packed yet; {remedy}"
        except DataError as error:
            return str(error)
    return None


def place_on_machine(config: Config, machine: Machine) -> Placement:
    """Return where the workers of a local Ray on `machine` run.

    With device "auto" and fewer GPUs than workers, as many workers as GPUs are used: the global batch
    stays, so the result stays the same up to rounding.

    Raises:
        ConfigError: a GPU is asked for where none is, more workers than GPUs, or more cores than there are.
    """
    requested, workers, note = config.train.device, config.train.num_workers, None
    if requested == "gpu" and machine.gpus == 0:
        raise ConfigError(
            [Problem("train.device", "gpu", "there is no GPU on this machine", "set --train.device cpu")]
        )
    device = "gpu" if machine.gpus and requested != "cpu" else "cpu"
    if device == "gpu" and workers > machine.gpus:
        if requested == "gpu":
            rule = f"needs {workers} GPUs, this machine has {machine.gpus}"
            raise ConfigError(
                [Problem("train.num_workers", workers, rule, f"set --train.num-workers {machine.gpus}")]
            )
        note = f"{machine.gpus} instead of {workers} workers: one a GPU"
        workers = machine.gpus
    cores = config.launch.cpus_per_worker or max(1, machine.cores // workers)
    if workers * cores > machine.cores:
        rule = f"needs {workers * cores:g} cores, {cores:g} a worker, and this machine has {machine.cores}"
        most = int(machine.cores / cores)
        fix = f"set --train.num-workers {most}" if most else f"set --launch.cpus-per-worker {machine.cores}"
        raise ConfigError([Problem("train.num_workers", workers, rule, fix)])
    return Placement(device, workers, cores, note)


def place_on_cluster(config: Config, resources: Mapping[str, float]) -> Placement:
    """Return where the workers run on a cluster that has `resources` now.

    More than it has now may be asked for: Ray waits for it, within `launch.controller_failure_limit`.
    Device "auto" is a GPU if the cluster has one now; ask for "gpu" where GPU nodes are still to come.
    """
    requested = config.train.device
    device = "gpu" if requested == "gpu" or (requested == "auto" and resources.get("GPU", 0)) else "cpu"
    return Placement(device, config.train.num_workers, config.launch.cpus_per_worker or 1)


def check_engine(config: Config, placement: Placement) -> None:
    """Check that the engine can start on this machine; workers of a cluster check theirs by themselves.

    Raises:
        RunError: naming what DeepSpeed lacks.
    """
    if placement.device == "gpu" or config.train.engine != "zero":
        return  # without a GPU DeepSpeed is used only where it is asked for
    from capsdist.train.engine.build import zero_requirements

    if lacking := zero_requirements():
        raise RunError(lacking)


def check_network(config: Config, num_workers: int) -> None:
    """Check, of a network with code of the user's own or with split class capsules, that it can be built.

    Others are known to by `all_problems`, without torch.

    Raises:
        ConfigError: it cannot, or this many workers cannot share the class capsules.
    """
    own = any(isinstance(value, str) and ":" in value for _, value in config.model)  # an import path
    if own or config.train.capsule_ranks > 1:
        from capsdist.train.network import check_network

        check_network(config, num_workers)


def check_initial(config: Config, log: Log) -> None:
    """Check that there are weights to start from and that they fit the network, without reading them.

    Raises:
        ConfigError: naming all that do not fit. DataError, RunError: the storage cannot be read.
    """
    if (state := initial_state(config, log)) is None:
        return
    from capsdist.models.counts import weight_shapes
    from capsdist.train.initial import check_fit

    try:
        there = parse_document(dump_json(state.config), Config)
    except DocumentError as error:
        rule = f"has a configuration that does not fit this version: {error}"
        fix = "use the version that wrote it"
        raise ConfigError([Problem("train.init_from", config.train.init_from, rule, fix)]) from None
    check_fit(weight_shapes(there), weight_shapes(config), config)


def _absolute(path: str) -> str:
    path = path.removeprefix("file://")
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))
