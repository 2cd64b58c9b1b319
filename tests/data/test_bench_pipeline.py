"""The benchmark of the pipeline runs and prints its figures as the last line; no figure is judged here."""

from __future__ import annotations

import io
import json
import runpy
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capsdist.bench.pipeline_aims import PIPELINE_ROWS
from capsdist.bench.pipeline_images import random_images
from capsdist.bench.pipeline_webdataset import plain_batches, same_shard_batches, write_each_sample
from capsdist.bench.tables import goals_table
from capsdist.data import write_split

JOB = Path(__file__).parents[2] / "jobs" / "bench_pipeline.py"


def run_job(capsys: pytest.CaptureFixture[str], **options: object) -> tuple[dict[str, float], str]:
    """Run the job; return the figures of its last line, and everything that it printed."""
    runpy.run_path(str(JOB))["main"](global_batch_size=24, **options)
    printed = capsys.readouterr().out
    return json.loads(printed.splitlines()[-1]), printed


def write_jpeg_tar(path: Path, sizes: list[tuple[int, int]]) -> None:
    """Write random JPEG files of these heights and widths, with labels, as a tar file."""
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(len(sizes))
    with tarfile.open(path, "w") as tar:
        for number, size in enumerate(sizes):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(content, "JPEG")
            for suffix, data in (("jpg", content.getvalue()), ("cls", b"%d" % (number % 3))):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("goals", [True, False])
def test_figures_are_the_last_line(capsys, goals):
    options = {"num": 500, "goals": goals, "repeats": 5, "subjects": ("reader", "rates", "writing", "order")}
    figures, printed = run_job(capsys, data=None, **options)
    costs = {"first_epoch_images_per_s", "unheld_images_per_s", "read_s", "checksum_s"}
    assert {"images_per_s", "share_of_gather_rate", "check_s"} | costs < set(figures)
    assert {"local_images_per_s", "speedup_vs_webdataset", "share_of_memcpy", "order_1_28m_s"} < set(figures)
    assert {"write_speedup_vs_webdataset", "speedup_vs_webdataset_same_shards"} < set(figures)
    assert all(value > 0 for value in figures.values())
    assert ("reached" in printed) == goals


def test_what_has_no_data_is_left_out_and_named(capsys) -> None:
    figures, printed = run_job(capsys, num=50, subjects=("stored", "jpeg", "litdata"), data=None)
    assert not figures
    for name in ("bytes_per_image", "jpeg_share_of_decoder", "jpeg_large_share_of_decoder", "speedup_vs_lit"):
        assert f"\n{name}" in printed


def test_memory_is_that_of_processes_of_their_own(capsys) -> None:
    figures, _ = run_job(capsys, num=300, num_files=60, subjects=("growth", "folder"), data=None)
    assert figures["folder_peak_mb"] > 10
    assert figures["memory_growth_20_epochs_mb"] < 500


def test_jpeg_figures_of_both_sizes(capsys, tmp_path: Path) -> None:
    write_jpeg_tar(tmp_path / "tiny-imagenet" / "val.tar", [(64, 64)] * 40)
    write_jpeg_tar(tmp_path / "imagenet-sample" / "imagenet-100.tar", [(250, 300), (224, 224), (500, 231)])
    figures, _ = run_job(capsys, num=50, repeats=1, subjects=("jpeg",), data=tmp_path)
    for name in ("jpeg", "jpeg_large"):
        others = [figures[f"{name}_{decoder}_images_per_s"] for decoder in ("simplejpeg", "pillow")]
        share = figures[f"{name}_images_per_s"] / max(others)
        assert figures[f"{name}_share_of_decoder"] == pytest.approx(share, rel=0.01)


def test_bytes_an_image_of_mnist(capsys, original_data: Path) -> None:
    figures, _ = run_job(capsys, num=50, subjects=("stored",), data=original_data)
    assert 784 < figures["bytes_per_image_raw"] <= 800
    assert 100 < figures["bytes_per_image_zstd"] <= 170


def test_baselines_read_every_image_once(tmp_path: Path) -> None:
    images, labels = random_images(101)
    index = write_split(tmp_path / "split", images, labels, classes=list("0123456789"), shard_size=40)
    write_each_sample(tmp_path / "plain.tar", images, labels, suffix="png")
    shards = [str(tmp_path / "split" / shard.name) for shard in index.shards]
    for batches in (plain_batches([f"{tmp_path}/plain.tar"], 16), same_shard_batches(shards, 16)):
        read = [
            (np.asarray(image).reshape(28, 28), int(label))
            for batch in batches
            for image, label in zip(*batch, strict=True)
        ]
        found = sorted((image.tobytes(), label) for image, label in read)
        expected = sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))
        assert found == expected
        assert [label for _, label in read] != labels.tolist()  # shuffled


def test_the_table_of_goals_says_what_is_reached() -> None:
    figures = {"share_of_memcpy": 0.1, "bytes_per_image_zstd": 170.1, "local_images_per_s": 5.0}
    lines = {line.split()[0]: line.split()[-1] for line in goals_table(PIPELINE_ROWS, figures).splitlines()}
    assert lines["share_of_memcpy"] == "reached"
    assert lines["bytes_per_image_zstd"] == "missed"
    assert lines["order_1_28m_s"] == "run"  # not run
    assert "local_images_per_s" not in lines  # it has no aim
