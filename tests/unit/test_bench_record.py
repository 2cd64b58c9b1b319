"""A record holds what is needed to repeat it, and reads back as it was written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capsdist.bench.record import (
    commit,
    hardware,
    hardware_slug,
    last_line,
    versions,
    write_record,
    write_run_record,
)
from capsdist.config import get_preset
from capsdist.errors import RunError
from capsdist.runs.rundir import RunFolder, RunSummary
from capsdist.statistics import error_interval


def test_record_reads_back(tmp_path: Path) -> None:
    folder = write_record(
        tmp_path,
        "routing",
        config={"seed": 0},
        figures={"time_ms": 1.5},
        log="a line\n",
        command="python x.py",
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_routing_[a-z0-9-]+", folder.name)
    record = json.loads((folder / "record.json").read_text())
    assert (folder / "log.txt").read_text() == "a line\n"
    assert record["config"] == {"seed": 0}
    assert record["figures"] == {"time_ms": 1.5}
    assert record["command"] == "python x.py"
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["torch_threads"] == torch.get_num_threads()


def test_the_default_command_is_that_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["jobs/bench_routing.py", "--device", "a b"])
    folder = write_record(tmp_path, "routing", config={}, figures={}, log="")
    record = json.loads((folder / "record.json").read_text())
    assert record["command"] == "python jobs/bench_routing.py --device 'a b'"


def test_a_second_record_of_the_day_replaces_the_first(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = write_record(tmp_path, "routing", config={}, figures={"number": number}, log="")
    assert len(list(tmp_path.iterdir())) == 1
    assert json.loads((folder / "record.json").read_text())["figures"] == {"number": 2}


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    for write in (lambda figures: write_record(tmp_path, "x", config={}, figures=figures, log=""), last_line):
        with pytest.raises(
            RunError, match="a figure is NaN or infinite, so it is not written; measure again"
        ):
            write({"time_ms": float("nan")})
    assert list(tmp_path.iterdir()) == []
    assert last_line({"time_ms": 1.5}) == '{"time_ms": 1.5}'


def test_a_record_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be written \(Not a directory\); make room there"):
        write_record(tmp_path / "file", "x", config={}, figures={}, log="")


def test_commit_is_one_of_this_checkout() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", commit())


def test_hardware_and_versions_are_known() -> None:
    machine = hardware()
    assert isinstance(machine["num_cores"], int)
    assert machine["cpu"]
    assert set(versions()) >= {"python", "torch", "capsdist", "ray", "deepspeed"}


@pytest.mark.parametrize(
    ("machine", "slug"),
    [
        ({"cpu": "AMD EPYC 9R14", "num_cores": 2}, "amd-epyc-9r14-2-cores"),
        ({"cpu": "Intel(R) Xeon(R) @ 2.1GHz", "num_cores": 8}, "intel-r-xeon-r-2-1ghz-8-cores"),
        ({"cpu": "any", "num_cores": 8, "gpu": "NVIDIA H100 80GB HBM3"}, "nvidia-h100-80gb-hbm3"),
    ],
)
def test_slug_of_the_machine(machine: dict, slug: str) -> None:
    assert hardware_slug(machine) == slug


def test_a_machine_with_torch_and_triton_alone_writes_records(tmp_path: Path) -> None:
    """That is where `jobs/gpu.py` runs."""
    code = (
        "import sys\n"
        "for name in ('pydantic', 'tyro', 'ray', 'deepspeed', 'psutil', 'xxhash', 's3fs', 'safetensors',"
        " 'rich', 'webdataset', 'fsspec', 'tenacity', 'tensorboard', 'yaml'):\n"
        "  sys.modules[name] = None\n"
        "import capsdist.console, capsdist.bench.gpu\n"
        "from capsdist.bench.aims import goals_table\nfrom capsdist.bench.gpu_aims import GPU_ROWS\n"
        "goals_table(GPU_ROWS, {})\n"
        "capsdist.bench.gpu_loop.GpuLoop('mnist_paper', 1, 1, 'cpu').flop_per_image()\n"
        "from capsdist.bench.record import write_record\nfrom pathlib import Path\n"
        "write_record(Path(sys.argv[1]), 'gpu', config={}, figures={'ratio': 2.0}, log='')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    [record] = tmp_path.glob("*/record.json")
    assert json.loads(record.read_text())["figures"] == {"ratio": 2.0}


def test_the_record_of_a_run_has_its_figures_rows_and_picture(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "mine")
    run.create()
    run.begin(get_preset("digits_quickstart"))
    with pytest.raises(RunError, match=r"mine: the run is not done \(result.json\); start it again"):
        write_run_record(tmp_path / "records", run.path, "mine", command="make mine", log=print)
    run.write_result(RunSummary("mine", str(run.path), "done", 7, 2.5, 90.5, 1.5))
    rows = [
        {"kind": "start", "step": 0, "resumed_step": 0},
        {"kind": "train", "step": 7, "loss": 0.5, "images_per_s": 90.5},
        {
            "kind": "end", "step": 7, "run": "mine", "test_split": "test", "stopped": False,
            "error_percent": 2.5, "label_error_percent": 1.5, "num_images": 400, "images_per_s": 90.5,
            "checkpoint": None, "wall_time_s": 1.0,
        },
    ]  # fmt: skip
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.path / "overview.png").write_bytes(b"a picture")
    made = {"command": "make mine", "log": print, "wall_s": 3.0}
    folder = write_run_record(tmp_path / "records", run.path, "mine", **made)
    record = json.loads((folder / "record.json").read_text())
    assert (record["command"], record["config"]["data"]["root"]) == ("make mine", "data")
    assert record["figures"]["starts"] == rows[:1]
    assert (record["figures"]["error_percent"], record["figures"]["wall_s"]) == (2.5, 3.0)
    assert record["figures"]["error_interval_percent"] == error_interval(2.5, 400)
    assert (record["figures"]["label_error_percent"], record["figures"]["num_images"]) == (1.5, 400)
    assert [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()] == rows
    assert (folder / "overview.png").read_bytes() == b"a picture"
