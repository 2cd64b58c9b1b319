"""A run that starts from the weights of another one: exactly those, or all that do not fit are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from initial_runs import taken, taken_in_parallel
from small_run import losses, run_small, same_bits, same_checkpoint, small_config

from capsdist.cli.check import check_config
from capsdist.config import Config, problems
from capsdist.errors import ConfigError
from capsdist.launch.preflight import absolute, check_initial
from capsdist.runs.initial import initial_state
from capsdist.runs.retention import checkpoint_name
from capsdist.runs.rundir import changed_fields
from capsdist.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from capsdist.train.engine.build import zero_requirements

HEAD = {"class_capsules.packed_weights", "decoder.layers.0.weight"}
"""What depends on the number of classes."""


@pytest.fixture(scope="module")
def source(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 4 and 8, of which the older one is the better."""
    folder = tmp_path_factory.mktemp("runs") / "source"
    run_small(small_config(shapes, max_steps=8), folder / "as written")
    for step, error in ((4, 10.0), (8, 20.0)):
        saved = read_checkpoint(folder / f"as written/step-{step:04d}")
        metrics = {"error_percent": error, "validated_step": float(step)}
        rewritten = Checkpoint(saved.engine, step, saved.epoch, saved.position, saved.config, metrics)
        write_checkpoint(folder / checkpoint_name(step), rewritten)
    return folder


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / checkpoint_name(step)).engine.model


def with_classes(config: Config, num_classes: int) -> Config:
    model = config.model.model_copy(update={"num_classes": num_classes})
    return config.model_copy(update={"model": model})


ENGINES: list[Any] = [
    pytest.param(1, "ddp", 0, id="plain"),
    pytest.param(2, "ddp", 0, id="ddp"),
    *(
        pytest.param(2, "zero", stage, id=f"zero-{stage}", marks=[
            pytest.mark.zero,
            pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements())),
        ])
        for stage in (1, 3)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("world_size", "engine", "stage"), ENGINES)
def test_a_network_begins_with_exactly_these_weights(
    world_size: int, engine: str, stage: int, shapes: Path, source: Path, on_ranks: Any
) -> None:
    config = small_config(shapes, seed=9, init_from=str(source), engine=engine, zero_stage=stage)
    found = on_ranks(world_size, taken, config, source / checkpoint_name(8))
    assert same_bits(found, weights_of(source, 8))


def test_capsules_over_ranks_begin_with_exactly_these_weights(
    shapes: Path, source: Path, on_ranks: Any
) -> None:
    found = on_ranks(2, taken_in_parallel, small_config(shapes), source / checkpoint_name(8))
    assert same_bits(found, weights_of(source, 8))


def test_a_run_begins_at_step_0_with_a_new_optimizer(shapes: Path, source: Path, tmp_path: Path) -> None:
    config = small_config(shapes, max_steps=2, init_from=str(source))
    rows = run_small(config, tmp_path / "run", init_from=source / checkpoint_name(8))
    assert (rows[0]["resumed_step"], [row["kind"] for row in rows if row["kind"] == "note"]) == (0, [])
    saved = read_checkpoint(tmp_path / "run/step-0002")
    assert {float(tensor) for name, tensor in saved.engine.optimizer.items() if name.endswith("/step")} == {
        2.0
    }
    # the mutant: without the weights, other losses
    assert losses(rows) != losses(run_small(config, tmp_path / "anew"))


def test_a_resumed_run_goes_on_from_its_own_checkpoint(shapes: Path, source: Path, tmp_path: Path) -> None:
    config = small_config(shapes, max_steps=6, checkpoint_every_steps=3, init_from=str(source))
    start = source / checkpoint_name(8)
    run_small(config, tmp_path / "whole", init_from=start)
    for name, again in (("with", start), ("without", None)):
        run_small(config, tmp_path / name, tmp_path / "whole/step-0003", init_from=again)
        assert same_checkpoint(tmp_path / name / "step-0006", tmp_path / "whole/step-0006")


def test_another_number_of_classes_is_refused_naming_all_that_does_not_fit(
    shapes: Path, source: Path, tmp_path: Path
) -> None:
    config = with_classes(small_config(shapes, init_from=str(source)), 4)
    with pytest.raises(ConfigError) as caught:
        check_initial(config, print)
    message = str(caught.value)
    assert message.startswith(f"train.init_from={str(source)!r}: does not fit the network: ")
    assert "'class_capsules.packed_weights' is [3, 5, 2, 27], the network has [4, 5, 2, 27]; " in message
    assert all(f"{name!r} is [" in message for name in HEAD)
    assert message.count(" the network has ") == len(HEAD)
    assert message.endswith("set --train.init-strict false to leave these out, or change the network")
    with pytest.raises(ConfigError) as in_the_loop:
        run_small(config, tmp_path, init_from=source / checkpoint_name(8))
    assert str(in_the_loop.value) == message
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_are_left_out_and_named(shapes: Path, source: Path, tmp_path: Path) -> None:
    config = with_classes(small_config(shapes, max_steps=1, init_from=str(source), init_strict=False), 4)
    check_initial(config, print)
    start = source / checkpoint_name(8)
    [note] = [row for row in run_small(config, tmp_path, init_from=start) if row["kind"] == "note"]
    assert note["message"].startswith(f"warning: left out of train.init_from={str(source)!r}: ")
    assert all(f"{name!r} is [" in note["message"] for name in HEAD)
    found, weights = taken(config, start), weights_of(source, 8)
    assert HEAD < found.keys() == weights.keys()
    for name in found.keys() - HEAD:
        assert torch.equal(found[name], weights[name]), name


def test_missing_and_unexpected_weights_are_named(shapes: Path, source: Path) -> None:
    config = small_config(shapes, init_from=str(source))
    model = config.model.model_copy(update={"capsule_bias": True, "decoder": False})
    with pytest.raises(
        ConfigError, match=r"'class_capsules\.bias' is not there; .*the network has no 'decoder\."
    ):
        check_initial(config.model_copy(update={"model": model}), print)


def test_a_network_of_which_nothing_fits_is_refused(shapes: Path, source: Path) -> None:
    config = small_config(shapes, kind="baseline_cnn", init_from=str(source), init_strict=False)
    with pytest.raises(
        ConfigError, match="has no weight that fits the network; name a run of a network like"
    ):
        check_initial(config, print)


@pytest.mark.parametrize(("place", "best", "step"), [
    ("{run}", False, 8), ("{run}", True, 4), ("{run}/step_00000004", False, 4),
    ("{run}/as written/step-0008", False, 8),
])  # fmt: skip
def test_what_init_from_names_is_found_without_reading_weights(
    place: str, best: bool, step: int, shapes: Path, source: Path
) -> None:
    config = small_config(shapes, init_from=place.format(run=source), init_best=best)
    state = initial_state(config, print)
    assert state is not None
    assert state.step == step


def test_a_place_without_a_checkpoint_is_refused_by_a_check_and_before_a_run(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(shapes, init_from=str(tmp_path / "none"), storage=str(tmp_path))
    with pytest.raises(
        ConfigError, match="holds no checkpoint; name a checkpoint, or a run that has trained"
    ):
        check_initial(config, print)
    assert check_config(config) == 2
    assert (
        f"error: train.init_from={str(tmp_path / 'none')!r}: holds no checkpoint" in capsys.readouterr().err
    )


def test_init_from_is_a_place_like_others(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(small_config(shapes, init_from="runs/a")).train.init_from == str(tmp_path / "runs/a")
    [problem] = problems(small_config(shapes, init_from="s3://key:secret@bucket/runs/a"))
    assert (problem.field, "secret" in str(problem)) == ("train.init_from", False)
    old, new = small_config(shapes), small_config(shapes, init_from="runs/a")
    assert list(changed_fields(old, new)) == ["train.init_from"]
