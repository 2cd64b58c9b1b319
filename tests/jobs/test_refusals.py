"""Bad input is refused before training starts: each fault made for real, one line, non-zero exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from job_helpers import ROOT, TINY_FLAGS, run_job_file, save_tiny, tiny_config, write_tiny

from capsdist.cli import run_job
from capsdist.config import Config, Launch
from capsdist.console import FAILED, INVALID
from capsdist.data import write_split
from capsdist.errors import ConfigError, RunError
from capsdist.launch.preflight import (
    Machine,
    Placement,
    check_engine,
    place_on_cluster,
    place_on_machine,
    this_machine,
)
from limits import PATIENCE_S

SMALL = Machine(cores=4, gpus=0)
TWO_GPUS = Machine(cores=8, gpus=2)


def wanting(cores: float = 0.0, **train: object) -> Config:
    return tiny_config(Path("data"), Path("runs"), "tiny", launch=Launch(cpus_per_worker=cores), **train)


def refused(
    capsys: pytest.CaptureFixture[str], root: Path, flags: list[str], status: int, *parts: str
) -> None:
    argv = [*TINY_FLAGS, f"--data.root={root}", f"--train.storage={root / 'runs'}", *flags]
    assert run_job("A job.", ["mnist_paper"], argv=argv) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in parts), line


@pytest.fixture
def own_root(tmp_path: Path) -> Path:
    """A data set of this test's own, to be damaged."""
    write_tiny(tmp_path)
    return tmp_path


def test_a_data_set_that_is_not_packed_names_the_command(capsys, tmp_path):
    command = f"capsdist pack cifar10 --root {tmp_path}`"
    refused(capsys, tmp_path, ["--data.name=cifar10"], FAILED, "cifar10/train", command)
    assert not (tmp_path / "runs").exists()


def test_a_split_of_another_name_is_told_which_there_are(capsys, tmp_path):
    write_tiny(tmp_path, name="mnist")
    flags = ["--data.name=mnist", "--data.train-split=trian"]
    parts = (
        "mnist/trian: there is no such split, ",
        "mnist has test, train; name one of them, or pack it your",
    )
    refused(capsys, tmp_path, flags, FAILED, *parts)


def test_a_missing_shard(capsys, own_root):
    (own_root / "tiny/test/shard-00000.tar").unlink()
    refused(capsys, own_root, [], FAILED, "tiny/test/shard-00000.tar: shard is missing", "--data.root")


def test_a_truncated_shard(capsys, own_root):
    path = own_root / "tiny/train/shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    refused(capsys, own_root, [], FAILED, "shard-00001.tar: has ", "bytes instead of")


def test_a_wrong_checksum(capsys, own_root):
    path = own_root / "tiny/train/shard-00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    refused(capsys, own_root, [], FAILED, "shard-00001.tar: wrong checksum")


def test_more_classes_than_the_network_has(capsys, tiny_root):
    parts = ("tiny/train: has 10 classes, the model takes 9", "set --model.num-classes 10")
    refused(capsys, tiny_root, ["--model.num-classes=9"], FAILED, *parts)


def test_a_batch_larger_than_the_split_does_not_take_the_name(capsys, tiny_root, tmp_path):
    flags = [f"--train.storage={tmp_path / 'runs'}", "--train.global-batch-size=100000000"]
    parts = (
        "train.global_batch_size=100000000",
        "the 92 images of",
        "set --train.global-batch-size 92 or less",
    )
    refused(capsys, tiny_root, flags, INVALID, *parts)
    assert not (tmp_path / "runs").exists()


def test_splits_that_number_their_classes_differently(capsys, own_root):
    images, labels = np.zeros((20, 1, 12, 12), np.uint8), np.arange(20) % 10
    classes = [f"class {number}" for number in (0, 1, 3, 2, *range(4, 10))]
    write_split(own_root / "tiny/test", images, labels, classes=classes)
    parts = ("tiny/test: class 2 is 'class 3', in ", "tiny/train it is 'class 2'", "same list of classes")
    refused(capsys, own_root, [], FAILED, *parts)
    assert not (own_root / "runs").exists()


@pytest.mark.parametrize("flag", ["--model.image-size=13", "--model.in-channels=3"])
def test_images_of_another_shape(capsys, tiny_root, flag):
    refused(capsys, tiny_root, [flag], FAILED, "images are 1 x 12 x 12", "model.image_size")


def test_a_storage_that_cannot_be_written(capsys, tiny_root, tmp_path):
    (tmp_path / "file").write_text("")
    flag = f"--train.storage={tmp_path}/file/runs"
    refused(capsys, tiny_root, [flag], FAILED, "train.storage=", "file/runs", "--train.storage")


def test_an_unknown_field_in_the_configuration_of_a_run_that_has_trained_another_network(
    capsys, tiny_root, tmp_path
):
    save_tiny(tmp_path / "old", 3)  # whose configuration counts; without one the run would begin anew
    (tmp_path / "old" / "config.json").write_text('{"optim": {"momentum": 0.9}}')
    flags = [f"--train.storage={tmp_path}", "--train.name=old"]
    refused(capsys, tiny_root, flags, INVALID, "train.name='old': this run has another configuration")


def test_an_invalid_configuration(capsys, tiny_root):
    refused(capsys, tiny_root, ["--data.lanes=5"], INVALID, "data.lanes=5", "must divide")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--model.image-size=13"], "model.image_size=13: images of 'train' are 1 x 12 x 12 (C x H x W)"),
        (["--model.in-channels=3"], "model.in_channels=3: images of 'train' are 1 x 12 x 12 (C x H x W)"),
        (
            ["--model.num-classes=9"],
            "model.num_classes=9: 'train' has 10 classes; set --model.num-classes 10",
        ),
        (
            ["--train.global-batch-size=9600"],
            "train.global_batch_size=9600: is more than the 92 images of 'train'",
        ),
        (
            ["--train.num-workers=9999", "--train.global-batch-size=99990", "--data.lanes=10"],
            "train.num_workers=9999: needs",
        ),
    ],
)
def test_check_compares_data_and_machine(capsys, tiny_root, tmp_path, monkeypatch, flags, problem):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    argv = [*TINY_FLAGS, f"--data.root={tiny_root}", f"--train.storage={tmp_path}", "--check", *flags]
    assert run_job("A job.", ["mnist_paper"], argv=argv) == INVALID
    assert f"error: {problem}" in capsys.readouterr().err


def test_check_compares_with_no_cluster(capsys, tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    flags = ["--train.num-workers=90", "--train.global-batch-size=90", "--data.lanes=10"]
    argv = [*TINY_FLAGS, f"--data.root={tiny_root}", f"--train.storage={tmp_path}", "--check", *flags]
    assert run_job("A job.", ["mnist_paper"], argv=argv) == 0
    shown = capsys.readouterr()
    assert "warning: train.num_workers=90: needs 90 cores" in shown.err
    assert shown.out.endswith("images and labels, the content of checkpoints, what the cluster has\n")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder like that of a job whose code Ray has uploaded."""
    folder = tmp_path / "session_1/runtime_resources/working_dir_files/_ray_pkg_0"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("more", [[], ["--check"]])
def test_a_run_in_an_uploaded_package(capsys, package, tmp_path, more):
    argv = [*TINY_FLAGS, f"--data.root={tmp_path}", "--train.storage=runs", *more]
    assert run_job("A job.", ["mnist_paper"], argv=argv) == INVALID
    shown = capsys.readouterr().err
    assert "error: train.storage='runs': lies in the folder to which Ray has uploaded" in shown
    assert "set --train.storage or CAPSDIST_STORAGE to a folder" in shown
    assert list(package.iterdir()) == []


def test_data_is_not_packed_into_an_uploaded_package(capsys, package, tmp_path):
    argv = ["--data.root=data", f"--train.storage={tmp_path}"]
    assert run_job("A job.", ["mnist_paper"], argv=argv) == FAILED
    [error] = capsys.readouterr().err.splitlines()
    assert error.endswith(
        "set --data.root or CAPSDIST_DATA_ROOT to a folder that all machines see, or s3://bucket/prefix"
    )


@pytest.mark.parametrize("more", [[], ["--check"]])
@pytest.mark.parametrize("field", ["data.root", "train.storage"])
@pytest.mark.parametrize("place", ["s3://b/a//b", "s3://b/../a", "file:///a%20b", "s3://b/a?colour=red"])
def test_places_that_ray_would_read_in_another_way(capsys, field, place, more):
    assert run_job("A job.", ["mnist_paper"], argv=[f"--{field}={place}", *more]) == INVALID
    assert f"error: {field}=" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--check"]])
def test_a_password_in_the_address_of_a_server(capsys, monkeypatch, more):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:PLANTED@127.0.0.1:9")
    assert run_job("A job.", ["mnist_paper"], argv=["--train.storage=s3://b/runs", *more]) == INVALID
    shown = capsys.readouterr()
    assert "AWS_ENDPOINT_URL holds a user or a password" in shown.err
    assert "PLANTED" not in shown.out + shown.err


def test_workers_take_the_cores_of_the_machine():
    assert place_on_machine(wanting(num_workers=1), SMALL) == Placement("cpu", 1, 4)
    assert place_on_machine(wanting(num_workers=3), SMALL) == Placement("cpu", 3, 1)
    assert place_on_machine(wanting(num_workers=4, cores=1), SMALL).threads == 1
    assert place_on_machine(wanting(num_workers=2, cores=1.5), SMALL) == Placement("cpu", 2, 1.5)


@pytest.mark.parametrize(
    ("num_workers", "cores", "fix"),
    [
        (5, 0.0, "--train.num-workers 4"),
        (3, 2.0, "--train.num-workers 2"),
        (1, 5.0, "--launch.cpus-per-worker 4"),
    ],
)
def test_more_than_the_cores_of_the_machine(num_workers, cores, fix):
    with pytest.raises(
        ConfigError, match=rf"train.num_workers={num_workers}: needs .* cores.*has 4; set {fix}"
    ):
        place_on_machine(wanting(num_workers=num_workers, cores=cores), SMALL)


def test_gpus_are_used_where_they_are():
    assert place_on_machine(wanting(num_workers=2, device="auto"), TWO_GPUS) == Placement("gpu", 2, 4)
    assert place_on_machine(wanting(num_workers=2, device="cpu"), TWO_GPUS).device == "cpu"
    assert place_on_machine(wanting(num_workers=2, device="auto"), SMALL).device == "cpu"


def test_auto_takes_as_many_workers_as_gpus():
    placement = place_on_machine(wanting(num_workers=3, device="auto"), TWO_GPUS)
    assert (placement.num_workers, placement.note) == (2, "2 instead of 3 workers: one a GPU")


def test_a_gpu_where_none_is():
    with pytest.raises(
        ConfigError, match=r"train.device='gpu': there is no GPU on this machine.*; set --train.device cpu"
    ):
        place_on_machine(wanting(device="gpu"), SMALL)


def test_more_workers_than_gpus():
    with pytest.raises(
        ConfigError, match=r"train.num_workers=3: needs 3 GPUs.*has 2; set --train.num-workers 2"
    ):
        place_on_machine(wanting(num_workers=3, device="gpu"), TWO_GPUS)


def test_a_cluster_may_grow():
    assert place_on_cluster(wanting(num_workers=99, device="auto"), {"CPU": 1}) == Placement("cpu", 99, 1)
    assert place_on_cluster(wanting(device="auto"), {"GPU": 1}).device == "gpu"
    assert place_on_cluster(wanting(device="gpu", cores=3), {}) == Placement("gpu", 2, 3)


def test_this_machine_has_no_more_than_the_process_may_use():
    machine = this_machine()
    assert 1 <= machine.cores <= len(os.sched_getaffinity(0))


def test_deepspeed_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RunError, match=r"^train.engine='zero' .*no-such-compiler.*--train.engine ddp$"):
        check_engine(wanting(engine="zero"), Placement("cpu", 2, 1))
    check_engine(wanting(engine="zero"), Placement("gpu", 2, 1))
    check_engine(wanting(engine="auto"), Placement("cpu", 2, 1))


@pytest.mark.parametrize(
    ("flags", "status", "line"),
    [
        (
            ["--train.num-workers=90", "--train.global-batch-size=92"], INVALID,
            "error: train.num_workers=90: needs",
        ),
        (["--train.device=gpu"], INVALID, "error: train.device='gpu': there is no GPU on this machine"),
    ],
)  # fmt: skip
def test_what_does_not_fit_this_machine_is_refused_before_ray_starts(
    tiny_root, tmp_path, flags, status, line
):
    argv = [*TINY_FLAGS, f"--data.root={tiny_root}", *flags]
    command = [sys.executable, ROOT / "jobs/train_mnist.py", *argv]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "RAY_TMPDIR": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    said = {"reading all images once, to compare their checksums"}  # on a machine where that takes longer
    assert (result.returncode, set(result.stdout.splitlines()) - said) == (status, set())
    assert result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_is_away_is_told_in_time(tiny_root, tmp_path):
    env = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}
    flags = [*TINY_FLAGS, f"--data.root={tiny_root}", f"--train.storage={tmp_path}"]
    done = run_job_file("train_mnist.py", *flags, cwd=tmp_path, env=env, timeout=PATIENCE_S)
    assert done.returncode == FAILED
    [line] = done.stderr.splitlines()
    assert line.startswith("error: RAY_ADDRESS='127.0.0.1:9': no Ray cluster answers there (")
