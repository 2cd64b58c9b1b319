"""`data.further_tests`: a run that is done is tested on further splits, once for each checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_run import run_small, small_config

from capsdist.analysis.evaluation import read_evaluation
from capsdist.cli.further import evaluation_name, further_figures, measure_further, missing_further
from capsdist.config import Config, with_values
from capsdist.data import Split, write_split
from capsdist.runs.retention import checkpoint_name
from capsdist.runs.rundir import RunFolder
from capsdist.train.evaluate import evaluate_checkpoint


@pytest.fixture(scope="module")
def done(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A short run, and a further set that is a third of its test images, noted as generated."""
    root, runs = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs")
    whole = Split(shapes / "shapes" / "test")
    images, labels = whole.gather(np.arange(0, whole.index.num_samples, 3))
    write_split(root / "third/test", images, labels, classes=whole.index.classes, licence="GENERATED")
    config = small_config(shapes, name="done", epochs=1)
    run_small(config, runs / "done")
    for saved in (runs / "done").glob("step-*"):
        saved.rename(runs / "done" / checkpoint_name(int(saved.name[5:])))
    RunFolder(runs / "done").begin(config)
    return with_values(
        config,
        {
            "data.root": str(root),
            "train.storage": str(runs),
            "train.device": "cpu",
            "data.further_tests": ("third/test", "affnist/test"),
        },
    )


def notes(config: Config, *, anew: bool) -> list[str]:
    rows: list[dict] = []
    measure_further(config, rows.append, anew=anew)
    return [row["message"] for row in rows if row["kind"] == "note"]


def test_each_packed_split_is_measured_and_kept(done: Config) -> None:
    run, split = Path(done.train.storage, "done"), Path(done.data.root, "third/test")
    third, affnist = notes(done, anew=True)
    _, expected = evaluate_checkpoint(
        run / checkpoint_name(RunFolder(run).steps_saved()), split, device="cpu"
    )
    stored = read_evaluation(run / "evaluation-third-test.json")
    assert stored.error_percent == expected["error_percent"]
    assert third.startswith(f"third/test: error_percent {expected['error_percent']:.2f}  (95 % interval ")
    assert third.endswith("; GENERATED")
    assert affnist.startswith("affnist/test (affNIST, the test set ")
    assert "not packed, so the run is not tested on it; pack it with `" in affnist
    assert "pack affnist --root " in affnist
    assert not (run / evaluation_name("affnist/test")).exists()
    [line] = missing_further(done)
    assert line.startswith("affnist/test: not packed, ")


def test_a_record_has_the_error_on_a_further_split(done: Config) -> None:
    run = RunFolder(Path(done.train.storage, "done"))
    notes(done, anew=True)
    stored = read_evaluation(run.files.path("evaluation-third-test.json"))
    assert further_figures(run) == {
        "error_percent on third/test": stored.error_percent,
        "error_interval_percent on third/test": stored.error_interval_percent,
        "num_images on third/test": stored.num_images,
    }
    Path(run.files.path("evaluation-third-test.json")).write_text("{")
    assert further_figures(run) == {}


def test_a_run_that_is_started_again_is_not_measured_again(done: Config) -> None:
    run, split = Path(done.train.storage, "done"), Path(done.data.root, "third/test")
    [first, _] = notes(done, anew=True)
    file = run / evaluation_name("third/test")
    before = file.stat().st_mtime_ns
    assert notes(done, anew=False)[0] == first
    assert file.stat().st_mtime_ns == before
    index = Split(split).index
    images, labels = Split(split).gather(np.arange(2))
    write_split(split, images, labels, classes=index.classes)  # another split in its place
    assert notes(done, anew=False)[0].endswith(", 2 images)")
    file.write_text("{")
    assert notes(done, anew=False)[0].endswith(", 2 images)")
    assert read_evaluation(file).num_images == 2


def test_a_split_that_cannot_be_used_is_told_and_stops_nothing(done: Config) -> None:
    images = np.zeros((4, 1, 5, 5), np.uint8)
    write_split(Path(done.data.root, "other/test"), images, np.arange(4), classes=list("abcd"))
    config = with_values(done, {"data.further_tests": ("other/test", "third/test")})
    other, third = notes(config, anew=True)
    assert other.startswith("warning: other/test: not measured (")
    assert third.startswith("third/test: error_percent ")
