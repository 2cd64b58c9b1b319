"""Write records: one folder per measurement, with everything that is needed to repeat it.

`jobs/records/<date>_<what>_<hardware>/` holds `record.json` (command, commit, versions, hardware,
configuration, figures) and `log.txt` (what the job printed). They are committed; README tables cite them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

import capsdist
from capsdist.console import Log
from capsdist.errors import RunError
from capsdist.statistics import error_interval
from capsdist.storage.documents import dump_json
from capsdist.storage.durable import write_durably
from capsdist.train.machine import cpu_info

__all__ = ["hardware", "hardware_slug", "last_line", "versions", "write_record", "write_run_record"]

# CPU flags that decide how fast matrix products are, and in which precision.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
_OF_END = ("num_images", "label_error_percent", "almost_correct_percent")
"""Fields of the last row of a run that its result.json lacks."""


def write_record(
    records: Path,
    what: str,
    *,
    config: Mapping[str, object],
    figures: Mapping[str, object],
    log: str,
    command: str | None = None,
) -> Path:
    """Write a record and return its folder; one of the same day, name and hardware is replaced.

    Args:
        records: folder of all records.
        what: what was measured, a word for the folder's name.
        config: whole configuration of the measurement, seeds and sizes included, JSON-able.
        figures: what was found, units in the names, JSON-able; failed rows stay in it.
        log: what the job printed.
        command: command line that repeats it; default: this process's.

    Raises:
        RunError: a figure is not finite, or the record cannot be written.
    """
    machine = hardware()
    now = datetime.now(UTC)
    folder = records / f"{now:%Y-%m-%d}_{what}_{hardware_slug(machine)}"
    record = {
        "what": what,
        "written": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "command": command or shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "versions": versions(),
        "hardware": machine,
        "config": config,
        "figures": figures,
    }
    content = _json(record, indent=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / "log.txt", log.encode())
        write_durably(folder / "record.json", content)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error}); make room there") from None
    return folder


def last_line(figures: Mapping[str, object]) -> str:
    """Return `figures` as one JSON object in one line.

    Raises:
        RunError: a figure is not finite.
    """
    return _json(figures, indent=None).decode().rstrip("\n")


def _json(value: Mapping[str, object], *, indent: int | None) -> bytes:
    try:
        return dump_json(value, indent=indent)
    except ValueError:
        raise RunError("a figure is NaN or infinite, so it is not written; measure again") from None


def write_run_record(
    records: Path,
    run: Path,
    what: str,
    *,
    command: str,
    log: Log,
    **circumstances: object,
) -> Path:
    """Write a record of the finished training run in the folder `run` and return the record's folder.

    The run's overview.png becomes part of it. `circumstances` stand beside its figures; `log` is told of
    damaged files of the run.

    Raises:
        RunError: there is no such folder, or the run is not done.
    """
    # late: `jobs/gpu.py` runs where there is no pydantic
    from capsdist.runs.rundir import OVERVIEW, RunFolder
    from capsdist.train.metrics import METRICS_NAME, read_metrics

    if not run.is_dir():
        raise RunError(f"{run}: is no folder of this machine; copy the run here first")
    folder = RunFolder(run, log)
    result, stored = folder.read_result(), folder.read_config()
    if result is None or result.status != "done" or stored is None:
        raise RunError(f"{run}: the run is not done (result.json); start it again")
    rows = read_metrics(run / METRICS_NAME, log)
    config = stored.model_dump(mode="json")
    for section, field in (("data", "root"), ("train", "storage")):  # where it lay says nothing to others
        config[section][field] = Path(config[section][field]).name
    starts = [row for row in rows if row["kind"] == "start"]
    summary = {name: value for name, value in asdict(result).items() if name not in {"run_dir", "reason"}}
    end = next((row for row in reversed(rows) if row["kind"] == "end"), {})
    also = {name: end[name] for name in _OF_END if name in end}
    if end.get("num_images") and result.error_percent is not None:  # a result of version 0.1 has no interval
        also["error_interval_percent"] = error_interval(result.error_percent, end["num_images"])
    figures = {**summary, **also, **circumstances, "starts": starts}
    text = "\n".join(last_line({k: v for k, v in row.items() if k != "confusion"}) for row in rows)
    record = write_record(records, what, config=config, figures=figures, log=text + "\n", command=command)
    if (run / OVERVIEW).is_file():
        write_durably(record / OVERVIEW, (run / OVERVIEW).read_bytes())
    return record


def commit() -> str:
    """Return the commit of the checkout, with `+changes` if tracked files differ, or `unknown`."""
    here = Path(__file__).parent
    head = _git(here, "rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")


def versions() -> dict[str, str]:
    """Return the versions of what computes the figures, as far as it is installed."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "capsdist": capsdist.__version__,
    }
    for name in ("numpy", "triton", "ray", "deepspeed", "webdataset"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> dict[str, object]:
    """Return what is known of the machine: processor, cores, flags, memory, threads, load, GPU if any."""
    cpu = cpu_info()
    flags = cpu.get("flags", "").split()
    found: dict[str, object] = {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "num_cores": len(os.sched_getaffinity(0)),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "torch_threads": torch.get_num_threads(),
        "load_average_1min": os.getloadavg()[0],
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def hardware_slug(machine: Mapping[str, object]) -> str:
    """Return a short name of the machine for a folder: the GPU if there is one, else processor and cores."""
    name = str(machine.get("gpu") or f"{machine['cpu']} {machine['num_cores']}-cores")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
