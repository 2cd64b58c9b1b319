"""A run, its validation and its evaluation number the classes alike, or are refused with both names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xxhash
from small_run import CLASSES, run_small, small_config, write_data

from capsdist.data import write_split
from capsdist.errors import ConfigError, DataError
from capsdist.train.checkpoint import read_checkpoint
from capsdist.train.evaluate import evaluate_checkpoint

OTHER = ("bar", "ring", "dot")


def write_test_split(folder: Path, classes: tuple[str, ...]) -> Path:
    write_split(folder, np.zeros((12, 1, 9, 9), np.uint8), np.arange(12) % 3, classes=classes)
    return folder


def make_old(checkpoint: Path) -> None:
    """Turn a checkpoint into what version 0.1 wrote: it does not name its classes."""
    state = json.loads((checkpoint / "state.json").read_text())
    del state["classes"]
    content = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    entry = {"bytes": len(content), "xxh3_128": xxhash.xxh3_128(content).hexdigest()}
    manifest["files"]["state.json"] = entry
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_refuses_a_test_split_with_other_numbers(tmp_path: Path) -> None:
    write_data(tmp_path)
    write_test_split(tmp_path / "shapes/test", OTHER)
    with pytest.raises(DataError, match=r"shapes/test: class 1 is 'ring', in .*shapes/train it is 'dot'"):
        run_small(small_config(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_refuses_more_classes_than_the_network_has(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes)
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 2})})
    with pytest.raises(DataError, match=r"has 3 classes, the model takes 2; set --model\.num-classes 3"):
        run_small(config, tmp_path)


def test_a_run_refuses_a_batch_larger_than_its_data(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"train\.global_batch_size=28: is more than the 26 images of .*train"
    ):
        run_small(small_config(shapes, global_batch_size=28), tmp_path)


def test_evaluation_compares_the_names_with_those_of_the_checkpoint(
    shapes: Path, tmp_path: Path, capsys
) -> None:
    run_small(small_config(shapes, max_steps=1), tmp_path / "run")
    checkpoint, other = tmp_path / "run/step-0001", write_test_split(tmp_path / "other", OTHER)
    assert read_checkpoint(checkpoint).classes == CLASSES
    assert evaluate_checkpoint(checkpoint, device="cpu")[1]["num_images"] == 12
    with pytest.raises(DataError, match=r"other: class 1 is 'ring', in the checkpoint's training data"):
        evaluate_checkpoint(checkpoint, other, device="cpu")
    make_old(checkpoint)
    capsys.readouterr()
    assert evaluate_checkpoint(checkpoint, other, device="cpu")[1]["num_images"] == 12
    assert "is of version 0.1 and does not name its classes; make sure that " in capsys.readouterr().out


def test_a_run_of_version_0_1_goes_on_with_a_warning(shapes: Path, tmp_path: Path) -> None:
    run_small(small_config(shapes, max_steps=4), tmp_path)
    rows = run_small(small_config(shapes, max_steps=5), tmp_path / "new", resume_from=tmp_path / "step-0004")
    assert "note" not in {row["kind"] for row in rows}
    make_old(tmp_path / "step-0004")
    rows = run_small(small_config(shapes, max_steps=5), tmp_path / "old", resume_from=tmp_path / "step-0004")
    (note,) = [row for row in rows if row["kind"] == "note"]
    assert "does not name its classes" in note["message"]
    assert rows[-1]["step"] == 5
