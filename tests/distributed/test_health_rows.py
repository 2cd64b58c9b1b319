"""Rows about the health of capsule layers: when they come, what they say, and that training is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import run_small, same_checkpoint, small_config

from capsdist.cli.main import main
from capsdist.config.models import Routing
from capsdist.console import DONE, INVALID
from capsdist.runs.loggers.base import curves
from capsdist.runs.retention import checkpoint_name
from capsdist.runs.rundir import RunFolder

BETWEEN = {"conv_capsnet": {"blocks.0.layer", "blocks.1.layer"}, "em_capsnet": {"conv_capsules.0"}}


@pytest.mark.parametrize("kind", ["capsnet", "conv_capsnet", "em_capsnet", "resnet_capsnet", "baseline_cnn"])
def test_training_with_health_rows_is_the_same_bit_for_bit(shapes: Path, tmp_path: Path, kind: str) -> None:
    settings = {"kind": kind, "max_steps": 4, "gradient_accumulation_steps": 2}
    run_small(small_config(shapes, **settings), tmp_path / "plain")
    rows = run_small(small_config(shapes, health_every=2, recompute=recompute(kind), **settings), tmp_path)
    assert same_checkpoint(tmp_path / "plain" / "step-0004", tmp_path / "step-0004")
    health = [row for row in rows if row["kind"] == "health"]
    assert [row["step"] for row in health] == [2, 4]
    named = {name.partition("/")[0] for name in health[0]} - {"kind", "step", "epoch"}
    layers = {"primary_capsules", "class_capsules"} | BETWEEN.get(kind, set())
    assert named == (set() if kind == "baseline_cnn" else layers)
    if named:
        assert health[0]["class_capsules/num_capsules"] == 3
        assert curves(health[0])["health/class_capsules/grad_norm"] > 0
        assert curves(health[0])["health/class_capsules/logit_change"] > 0
        assert "health/primary_capsules/logit_change" not in curves(health[0])


@pytest.mark.parametrize("algorithm", ["attention", "inverted", "heinsen"])
def test_health_rows_of_other_algorithms_change_nothing_either(
    shapes: Path, tmp_path: Path, algorithm: str
) -> None:
    hidden = (4,) if algorithm == "inverted" else ()
    routing = Routing(algorithm=algorithm, hidden_capsules=hidden)
    config = small_config(shapes, max_steps=2).model_copy(update={"routing": routing})
    run_small(config, tmp_path / "plain")
    watched = config.train.model_copy(update={"health_every": 2})
    rows = run_small(config.model_copy(update={"train": watched}), tmp_path)
    assert same_checkpoint(tmp_path / "plain" / "step-0002", tmp_path / "step-0002")
    (health,) = (row for row in rows if row["kind"] == "health")
    assert 0 < health["class_capsules/relative_entropy"] <= 1 + 1e-6
    assert ("class_capsules.layers.0/relative_entropy" in health) == (algorithm == "inverted")


def recompute(kind: str) -> str:
    """Blocks that are computed again run twice, and are looked at once."""
    return "blocks" if kind == "conv_capsnet" else "none"


def test_two_ranks_have_rows_of_the_first(on_ranks, shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, kind="conv_capsnet", max_steps=2, health_every=1)
    rows = on_ranks(2, run_small, config, tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "health"] == [1, 2]


def test_the_doctor_examines_a_run(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("conv_capsnet", "baseline_cnn"):
        config = small_config(shapes, kind=kind, name=kind, max_steps=1)
        run_small(config, tmp_path / kind)
        (tmp_path / kind / "step-0001").rename(tmp_path / kind / checkpoint_name(1))
        RunFolder(tmp_path / kind).begin(config)
    assert main(["doctor", str(tmp_path / "conv_capsnet"), "--num-images", "8"]) == DONE
    text = capsys.readouterr().out
    assert "conv_capsnet, examined on the first 8 images of " in text
    assert all(name in text for name in ("primary_capsules", "blocks.0.layer", "blocks.1.layer", "live %"))
    assert main(["doctor", str(tmp_path / "baseline_cnn")]) == DONE
    assert "no capsule layers that can be examined" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "conv_capsnet"), "--num-images", "0"]) == INVALID
