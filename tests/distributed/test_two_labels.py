"""A network learns to name both shapes of an image, by `train_step` and `evaluate` on batches made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_run import run_small, small_config
from torch import Tensor

import capsdist
from capsdist.cli.main import main
from capsdist.config import Config
from capsdist.config.models import find_family
from capsdist.data import Batch, write_split
from capsdist.errors import DataError
from capsdist.models import build_model
from capsdist.ops import multi_hot
from capsdist.ops.predictions import largest
from capsdist.train.engine.plain import PlainEngine
from capsdist.train.evaluate import Evaluation, evaluate
from capsdist.train.step import train_step
from capsdist.train.window import Window

NUM_CLASSES = 4
STEPS = {"baseline_cnn": 12, "capsnet": 120}
"""Steps in which a network learns its task."""
CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "baseline_cnn": {"dropout": 0.0},
    "capsnet": {
        "conv_channels": 8, "conv_kernel": 3, "primary_types": 4, "primary_dim": 4, "primary_kernel": 3,
        "class_dim": 6, "decoder_hidden": (16, 32),
    },
}  # fmt: skip


def config_of(kind: str, accumulation: int = 1) -> Config:
    model = {"kind": kind, "image_size": 9, "num_classes": NUM_CLASSES, "num_labels": 2, **SMALL[kind]}
    train = {"gradient_accumulation_steps": accumulation, "precision": "fp32", "global_batch_size": 24}
    rate = 0.01 if kind == "capsnet" else 0.001
    return Config.model_validate({"model": model, "optim": {"learning_rate": rate}, "train": train})


def batch_of(num: int, seed: int, padding: int = 0) -> Batch:
    """Images of one or two of four shapes, each drawn over the other; the last `padding` count nowhere."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 40, (num, 1, 9, 9), generator=generator, dtype=torch.uint8)
    labels = torch.rand(num, NUM_CLASSES, generator=generator).argsort(1)[:, :2]
    labels[::5, 1] = -1
    for image, members in zip(images[:, 0], labels.tolist(), strict=True):
        if 0 in members:
            image[1, :] = 220
        if 1 in members:
            image[:, 1] = 220
        if 2 in members:
            image[7, :] = 220
        if 3 in members:
            image[:, 7] = 220
    weights = torch.ones(num)
    weights[num - padding :] = 0
    labels[num - padding :] = -1
    return Batch(images, labels, weights, torch.arange(num), num - padding)


def with_labels(batch: Batch, labels: Tensor) -> Batch:
    return Batch(batch.images, labels, batch.weights, batch.sample_ids, batch.num_global)


def trained(config: Config, steps: int, *, multi: bool = False) -> tuple[PlainEngine, Window]:
    """A network after `steps` steps, and the window of the last five; `multi`: with multi-hot targets."""
    torch.manual_seed(0)
    model, family = build_model(config.model, config.routing), find_family(config.model.kind)
    engine = PlainEngine(model, config.optim, rank=0, world_size=1, device=CPU, precision="fp32")
    window = Window(family, CPU, 1, config.model.num_labels)
    for step in range(steps):
        batch = batch_of(24, step)
        if multi:
            batch = with_labels(batch, multi_hot(batch.labels, NUM_CLASSES))
        if step == steps - 5:
            window = Window(family, CPU, 1, config.model.num_labels)
        window.add(*train_step(engine, batch, batch.images / 255, family, config, step, 100))
    model.eval()
    return engine, window


def packed(folder: Path, batches: list[Batch]) -> Path:
    """Write the images of `batches` that count as a split."""
    images, labels = (
        torch.cat([getattr(batch, name)[batch.weights > 0] for batch in batches]).numpy()
        for name in ("images", "labels")
    )
    write_split(folder, images, labels, classes=list("abcd"), block_size=10, shard_size=25)
    return folder


def evaluated(engine: PlainEngine, config: Config, batches: list[Batch], folder: Path) -> Evaluation:
    """What `evaluate` makes of the images of `batches`."""
    return evaluate(engine.forward, packed(folder, batches), config, device=CPU, batch_size=24)


@pytest.mark.parametrize("kind", SMALL)
def test_a_network_learns_both_labels(kind: str, tmp_path: Path) -> None:
    config = config_of(kind)
    batches = [batch_of(24, 1000), batch_of(24, 1001, padding=7)]
    engine, _ = trained(config, 1)
    before = evaluated(engine, config, batches, tmp_path / "bars")
    engine, window = trained(config, STEPS[kind])
    after = evaluated(engine, config, batches, tmp_path / "bars")
    assert before["error_percent"] > 30
    assert after["error_percent"] < 10
    errors = {"error_percent", "label_error_percent", "almost_correct_percent"}
    assert set(after) == errors | {"error_interval_percent", "loss", "num_images"}
    assert after["num_images"] == 24 + 17
    means = window.close()
    assert set(means.errors) == errors
    assert means.errors["error_percent"] < 20
    assert means.errors["label_error_percent"] < 20


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "baseline_cnn")) for kind in SMALL]
)
def test_a_run_learns_both_labels_of_a_packed_set(kind: str, tmp_path: Path) -> None:
    for split, seeds in (("train", range(8)), ("test", range(50, 52))):
        packed(tmp_path / "bars" / split, [batch_of(24, seed) for seed in seeds])
    config = config_of(kind)
    data = {"name": "bars", "root": str(tmp_path), "shift": 0, "lanes": 4, "window": 32}
    config = Config.model_validate(
        config.model_dump() | {"data": data, "train": {**config.train.model_dump(), "epochs": 15}}
    )
    rows = run_small(config, tmp_path)
    found = [row for row in rows if row["kind"] == "validation"][-1]
    assert found["num_images"] == 48
    assert found["label_error_percent"] <= found["error_percent"] < 15
    one = config.model_copy(update={"model": config.model.model_copy(update={"num_labels": 1})})
    with pytest.raises(
        DataError, match=r"train: an image has up to 2 labels, the model takes 1; set --model.num-labels 2"
    ):
        run_small(one, tmp_path)


@pytest.mark.parametrize("kind", SMALL)
def test_the_errors_are_those_of_a_count_by_hand(kind: str, tmp_path: Path) -> None:
    config = config_of(kind)
    batches = [batch_of(24, 1000), batch_of(24, 1001, padding=7)]
    engine, _ = trained(config, STEPS[kind] // 6)
    found = evaluated(engine, config, batches, tmp_path / "bars")
    wrong = almost = missed = labels = images = 0
    for batch in batches:
        scores = engine.forward(batch.images / 255).scores.detach()
        for row, members, weight in zip(scores, batch.labels.tolist(), batch.weights.tolist(), strict=True):
            if weight:
                true = set(members) - {-1}
                read = set(largest(row[None], len(true))[0].tolist())
                wrong += read != true
                almost += bool(read & true)
                missed += len(true - read)
                labels += len(true)
                images += 1
    assert wrong > 0
    assert found["error_percent"] == pytest.approx(100 * wrong / images)
    assert found["label_error_percent"] == pytest.approx(100 * missed / labels)
    assert found["almost_correct_percent"] == pytest.approx(100 * almost / images)
    assert 100 - found["error_percent"] < found["almost_correct_percent"]


@pytest.mark.parametrize("kind", SMALL)
def test_sets_multi_hot_and_microbatches_train_alike(kind: str) -> None:
    expected = trained(config_of(kind), 2)[1].close()
    for _, window in (trained(config_of(kind), 2, multi=True), trained(config_of(kind, accumulation=2), 2)):
        found = window.close()
        assert found.losses == pytest.approx(expected.losses, rel=1e-3)
        assert found.errors == pytest.approx(expected.errors, rel=0.1)


def test_a_run_has_the_error_of_labels_in_its_rows_and_evaluate_prints_it(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The packed images have one label each, which such a network takes as sets of one."""
    config = small_config(shapes, learning_rate=0.05)
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_labels": 2})})
    rows = run_small(config, tmp_path)
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("train", "validation", "end")}
    for row in (*by_kind["train"], *by_kind["validation"], *by_kind["end"]):
        assert row["label_error_percent"] == pytest.approx(row["error_percent"])
        assert row["almost_correct_percent"] == pytest.approx(100 - row["error_percent"])
        assert "confusion" not in row
    newest = max(tmp_path.glob("step-*"))
    assert main(["evaluate", str(newest), "--device", "cpu"]) == 0
    *_, of_labels, last = capsys.readouterr().out.splitlines()
    error = by_kind["end"][0]["error_percent"]
    assert of_labels == f"label_error_percent {error:.2f}  almost_correct_percent {100 - error:.2f}"
    assert last.startswith(f"error_percent {error:.2f}  (95 % interval ")
    for number in range(2):
        Image.new("L", (9, 9), 100 * number).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    assert main(["predict", str(newest), *files, "--device", "cpu"]) == 0
    found = capsdist.load(newest, device="cpu").predict(files)
    for line, file, name, scores in zip(
        capsys.readouterr().out.splitlines(), files, found.names, found.scores.tolist(), strict=True
    ):
        first, second, _ = sorted(scores, reverse=True)
        assert line == f"{file}: {name} ({first:.3f}, {second:.3f})"
        assert name.count("+") == 1


def test_two_ranks_have_the_errors_of_one(on_ranks, shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, epochs=1, max_grad_norm=0.5)
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_labels": 2})})
    rows = [on_ranks(number, run_small, config, tmp_path / str(number)) for number in (1, 2)]
    names = ("error_percent", "label_error_percent", "almost_correct_percent")
    errors = [[[row.get(name) for name in names] for row in each if row["kind"] != "start"] for each in rows]
    assert errors[0] == errors[1]
    assert None not in errors[0][-1]
