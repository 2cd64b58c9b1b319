"""A transforming auto-encoder trains on known shifts, on one and two ranks, resumes exactly, and is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ranks import RankError, Ranks
from small_run import losses, run_small, same_checkpoint, small_config, without_times, write_data

from capsdist.analysis.figures import draw_figures
from capsdist.analysis.known_shifts import follow, shift_r2
from capsdist.analysis.overview import overview
from capsdist.analysis.report.facts import read_facts
from capsdist.analysis.report.run_page import write_report
from capsdist.config import Config, validate, with_values
from capsdist.config.transforming_autoencoder import TransformingAutoencoderConfig
from capsdist.data import eval_batches
from capsdist.data.transforms import known_shifts
from capsdist.data.transforms.geometry import shifted
from capsdist.errors import ConfigError
from capsdist.inference import load
from capsdist.train import mfu
from capsdist.train.checkpoint import load_model
from capsdist.train.evaluate import evaluate_checkpoint, evaluate_engine
from capsdist.train.parts import Parts, build_parts
from capsdist.train.program import StepProgram
from capsdist.train.speed import draws_random_numbers, example_batch
from capsdist.train.step import train_on
from tape import tape

FINAL, MIDDLE = "step-0012", "step-0006"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    return tmp_path / "data"


def config_of(root: Path, **train) -> Config:
    config = small_config(root, keep_best=0, **train)
    network = TransformingAutoencoderConfig(
        image_size=9, num_classes=3, capsules=3, recognition_units=4, generation_units=5, max_shift=2
    )
    config = Config.model_validate({**dict(config), "model": network, "routing": {}, "loss": {}})
    return validate(config)


def parts_of(config: Config) -> Parts:
    return build_parts(config, rank=0, world_size=1, device=torch.device("cpu"))


def test_a_step_compares_what_is_drawn_with_the_shifted_images(root: Path) -> None:
    parts = parts_of(config_of(root, gradient_accumulation_steps=3))
    batch, seed = next(iter(parts.stream.epoch(2))), parts.config.train.seed
    assert batch.epoch == 2
    shifts = known_shifts(batch.sample_ids, seed, 2, 2)
    images = parts.transform(batch.images, batch.sample_ids, seed, 2)
    with torch.no_grad():
        drawn = parts.engine.model(images, shifts.float()).reconstructions
    expected = (drawn - shifted(images, shifts, 2)).square().sum()
    sums, _ = train_on(parts, batch, 0)
    assert sums.tolist() == pytest.approx([float(expected), 8], rel=1e-5)
    parts.close()


def test_a_validation_has_a_loss_and_no_error_and_is_always_the_same(root: Path) -> None:
    config = config_of(root)
    parts, folder = parts_of(config), root / "shapes/test"
    found = evaluate_engine(parts.engine, folder, config)
    assert set(found) == {"loss", "num_images"}
    seen = []
    again = evaluate_engine(parts.engine, folder, config, observe=lambda *pair: seen.append(pair))
    assert again == found
    [(wanted, output)] = seen  # the first batch, of 8: the copies that had to be drawn
    shifts = known_shifts(torch.arange(8), config.train.seed, 0, 2)
    assert (shifts != 0).any()
    still = parts.engine.model(shifted(wanted, -shifts, 2)).scores  # of images a bar of which may be cut off
    assert still.shape == output.scores.shape == (8, 3)
    parts.close()


def test_two_ranks_train_as_one(on_ranks, root: Path, tmp_path: Path) -> None:
    config = config_of(root)
    one, two = (on_ranks(number, run_small, config, tmp_path / str(number)) for number in (1, 2))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    told = [[row["loss"] for row in rows if row["kind"] == "validation"] for rows in (one, two)]
    assert told[1] == pytest.approx(told[0], rel=1e-4)
    assert all("error_percent" not in row for row in one if row["kind"] in ("train", "validation"))
    assert one[-1]["error_percent"] is None


def test_a_killed_run_of_two_ranks_continues_bit_for_bit(on_ranks, root: Path, tmp_path: Path) -> None:
    config = config_of(root, checkpoint_every_steps=6)
    whole = on_ranks(2, run_small, config, tmp_path / "whole")
    with Ranks(2) as mortal, pytest.raises(RankError, match="died with exit code 9"):
        mortal.run(run_small, config, tmp_path / "killed", None, None, 7)
    rest = on_ranks(2, run_small, config, tmp_path / "killed", tmp_path / "killed" / MIDDLE)
    assert rest[0]["resumed_step"] == 6
    assert without_times(rest) == [row for row in without_times(whole) if row["step"] > 6]
    assert same_checkpoint(tmp_path / "whole" / FINAL, tmp_path / "killed" / FINAL)


def test_a_recorded_run_equals_an_eager_one_bit_for_bit(root: Path) -> None:
    eager, recorded = (parts_of(config_of(root)) for _ in range(2))
    program = StepProgram(recorded, tape)
    for epoch in range(3):
        pairs = zip(eager.stream.epoch(epoch), recorded.stream.epoch(epoch), strict=True)
        for step, (one, other) in enumerate(pairs):
            expected, found = train_on(eager, one, 4 * epoch + step), program(other, 4 * epoch + step)
            assert torch.equal(found[0], expected[0])
    assert program.recorded
    assert program.failure is None


def test_trials_before_the_first_step_are_told_shifts(root: Path) -> None:
    parts = parts_of(config_of(root, microbatch_size="auto"))
    assert parts.config.train.microbatch_size == 8
    assert not draws_random_numbers(parts, example_batch(parts))
    cost = parts.family.cost(parts.config.model, parts.config.routing)  # type: ignore[misc]
    assert mfu._flop_of(parts) == sum(each.forward_flop + each.backward_flop for each in cost.layers)


def test_a_run_is_drawn_and_its_classes_are_not_asked_for(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "small"
    rows = run_small(config_of(root), run)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / FINAL).rename(run / "step_00000012")
    checkpoint = run / "step_00000012"
    files = draw_figures([str(checkpoint)], str(tmp_path / "figures"), num_images=3)
    names = ("known_shifts", "known_shifts_images", "figure_a2")
    assert {Path(file).stem for file in files} <= set(names)
    assert [Path(file).name for file in files[:2]] == ["known_shifts.json", "known_shifts.png"]
    numbers = json.loads(Path(files[0]).read_text())
    config, network = load_model(checkpoint)
    parts = parts_of(config)
    test = torch.cat(
        [parts.transform.evaluated(b.images) for b in eval_batches(root / "shapes/test", batch_size=4)]
    )
    found = shift_r2(follow(network, test, known_shifts(torch.arange(12), 3, 0, 2), 2))  # type: ignore[arg-type]
    assert numbers["r2"] == {"images": list(found.images), "capsules": list(found.capsules)}
    assert overview(run).endswith("overview.png")
    page = Path(write_report(read_facts(str(run)))).read_text()
    assert "Loss" in page
    for ask in (lambda: evaluate_checkpoint(checkpoint, device="cpu"), lambda: load(checkpoint)):
        with pytest.raises(ConfigError, match=r"model\.kind='transforming_autoencoder': names no classes"):
            ask()
    with pytest.raises(ConfigError, match=r"train\.keep_best=1: is about error_percent"):
        validate(with_values(config, {"train.keep_best": 1}))
