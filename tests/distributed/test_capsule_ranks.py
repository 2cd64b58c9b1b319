"""Jobs whose class capsules are split over ranks (`train.capsule_ranks`) are those of one rank."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from capsule_rank_runs import first_weights, load_and_save, split_config
from small_run import SMALL, losses, run_small, same_bits, same_checkpoint, small_config, without_times

from capsdist.config import Config, problems
from capsdist.errors import ConfigError
from capsdist.train.checkpoint import read_checkpoint
from capsdist.train.engine.build import build_engine, zero_requirements
from capsdist.train.evaluate import evaluate_checkpoint
from capsdist.train.manifest import parse_manifest
from capsdist.train.network import build_rank_network, check_network

SHAPES = {"one rank": (1, 1), "two capsule ranks": (2, 2), "2x2": (4, 2)}
"""World size and capsule ranks of the runs here."""
ZERO = {f"zero-{stage}": {"engine": "zero", "zero_stage": stage} for stage in (0, 1, 2)}
END, MIDDLE = "step-0006", "step-0003"

zero = [
    pytest.mark.zero,
    pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements())),
]


@pytest.fixture(scope="module")
def runs(on_ranks: Any, shapes: Path, tmp_path_factory: pytest.TempPathFactory):
    """Rows and checkpoints of six steps, the last of an epoch short, in every shape."""
    folder = tmp_path_factory.mktemp("runs")
    rows = {
        name: on_ranks(size, run_small, split_config(shapes, ranks, max_steps=6), folder / name)
        for name, (size, ranks) in SHAPES.items()
    }
    return rows, folder


def digests(folder: Path) -> list[str]:
    """The digests of the files of tensors of a checkpoint."""
    files = parse_manifest((folder / "manifest.json").read_bytes()).files
    return [files[name].xxh3_128 for name in ("model.safetensors", "optimizer.safetensors")]


def check_same_run(found: Any, expected: Any, folder: Path, other: Path) -> None:
    """Losses, norms, validations, and weights and Adam's state after all steps are equal to rounding."""
    assert losses(found) == pytest.approx(losses(expected), rel=1e-5)
    kinds = {"train": "grad_norm", "validation": "loss"}
    figures = [
        [row[kinds[row["kind"]]] for row in rows if row["kind"] in kinds] for rows in (found, expected)
    ]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    errors = [[row["confusion"] for row in rows if row["kind"] == "validation"] for rows in (found, expected)]
    assert errors[0] == errors[1]
    a, b = read_checkpoint(folder).engine, read_checkpoint(other).engine
    for one, two in ((a.model, b.model), (a.optimizer, b.optimizer)):
        assert one.keys() == two.keys()
        for name, tensor in two.items():
            torch.testing.assert_close(one[name], tensor, rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("name", ["two capsule ranks", "2x2"])
def test_a_run_is_that_of_one_rank(runs, name: str) -> None:
    rows, folder = runs
    check_same_run(rows[name], rows["one rank"], folder / name / END, folder / "one rank" / END)
    norms = [row["grad_norm"] for row in rows[name] if row["kind"] == "train"]
    assert max(norms) > 0.05  # else clipping by another norm would not be seen


@pytest.mark.parametrize(
    ("initialisation", "drawn_at_once"), [("default", 16), ("truncated_normal", 1 << 22)]
)
def test_ranks_draw_the_weights_of_one_rank_and_hold_their_part(
    ranks: Any, shapes: Path, initialisation: str, drawn_at_once: int
) -> None:
    def config(capsule_ranks: int) -> Config:
        whole = split_config(shapes, capsule_ranks)
        model = whole.model.model_copy(update={"initialisation": initialisation})
        return whole.model_copy(update={"model": model})

    expected, number, _ = first_weights(config(1))
    found = ranks(2).run(first_weights, config(2), None, drawn_at_once)
    assert same_bits(found[0][0], expected)
    assert [each[2] for each in found] == [number, number]
    shared = sum(
        t.numel() for name, t in expected.items() if name[15:] not in ("packed_weights", "log_priors")
    )
    assert sum(each[1] - shared for each in found) == number - shared
    assert max(each[1] - shared for each in found) < 0.52 * (number - shared)


def test_ranks_begin_with_the_weights_of_another_run(ranks: Any, runs, shapes: Path) -> None:
    source = runs[1] / "2x2" / MIDDLE
    config = split_config(shapes, 2)
    config = config.model_copy(update={"train": config.train.model_copy(update={"init_from": str(source)})})
    found = ranks(2).run(first_weights, config, source)
    assert same_bits(found[0][0], read_checkpoint(source).engine.model)


def test_every_checkpoint_loads_into_every_shape_bit_for_bit(
    on_ranks: Any, runs, shapes: Path, tmp_path: Path
) -> None:
    sources = [runs[1] / name / END for name in SHAPES]
    assert len({tuple(digests(source)) for source in sources}) == 3  # equal ones would say nothing
    for name, (size, capsule_ranks) in SHAPES.items():
        on_ranks(size, load_and_save, split_config(shapes, capsule_ranks), sources, tmp_path / name)
        for number, source in enumerate(sources):
            assert digests(tmp_path / name / str(number)) == digests(source), (name, source)


def test_a_run_continues_bit_for_bit_and_in_another_shape(ranks: Any, runs, shapes: Path, tmp_path: Path):
    rows, folder = runs
    middle = folder / "2x2" / MIDDLE
    rest = ranks(4).run(run_small, split_config(shapes, 2, max_steps=6), tmp_path / "same", middle)[0]
    assert without_times(rest) == [row for row in without_times(rows["2x2"]) if row["step"] > 3]
    assert same_checkpoint(tmp_path / "same" / END, folder / "2x2" / END)
    other = ranks(2).run(run_small, split_config(shapes, 2, max_steps=6), tmp_path / "other", middle)[0]
    assert losses(other) == pytest.approx(losses(rest), rel=1e-5)


def test_what_split_ranks_saved_is_evaluated_in_one_process(runs, shapes: Path) -> None:
    rows, folder = runs
    _, found = evaluate_checkpoint(folder / "2x2" / END, batch_size=5, device="cpu", log=lambda text: None)
    [*_, validation] = [row for row in rows["2x2"] if row["kind"] == "validation"]
    assert found["confusion"] == validation["confusion"]
    assert found["loss"] == pytest.approx(validation["loss"], rel=1e-5)


@pytest.mark.parametrize("name", [pytest.param(name, marks=zero) for name in ZERO])
def test_zero_partitions_the_rest_over_all_ranks(
    on_ranks: Any, runs, shapes: Path, tmp_path: Path, name: str
) -> None:
    """On a mesh of 2x2: the run, its continuation, and its checkpoint in the other shapes."""
    rows, folder = runs
    config = split_config(shapes, 2, max_steps=6, **ZERO[name])
    found = on_ranks(4, run_small, config, tmp_path / "run")
    check_same_run(found, rows["one rank"], tmp_path / "run" / END, folder / "one rank" / END)
    rest = on_ranks(4, run_small, config, tmp_path / "rest", tmp_path / "run" / MIDDLE)
    assert without_times(rest) == [row for row in without_times(found) if row["step"] > 3]
    assert same_checkpoint(tmp_path / "rest" / END, tmp_path / "run" / END)
    sources = [tmp_path / "run" / END, *(folder / each / END for each in SHAPES)]
    on_ranks(4, load_and_save, config, sources, tmp_path / "zero")
    on_ranks(1, load_and_save, split_config(shapes, 1), sources[:1], tmp_path / "whole")
    on_ranks(2, load_and_save, split_config(shapes, 2), sources[:1], tmp_path / "split")
    for number, source in enumerate(sources):
        assert digests(tmp_path / "zero" / str(number)) == digests(source)
    assert digests(tmp_path / "whole/0") == digests(tmp_path / "split/0") == digests(sources[0])


def with_train(config: Config, **values: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=values)})


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"num_workers": 3}, "train.capsule_ranks=2: must divide train.num_workers=3; set"),
        (
            {"engine": "zero", "zero_stage": 3},
            "train.zero_stage=3: partitions weights over all workers as one",
        ),
        (
            {"device": "auto", "zero_stage": 3},
            "train.zero_stage=3: partitions weights over all workers as one",
        ),
        ({"device": "gpu", "precision": "fp16"}, "train.precision='fp16': has a loss scale, which does not"),
    ],
)
def test_what_split_capsules_cannot_have_is_refused(train: dict[str, object], message: str) -> None:
    settings = {"num_workers": 2, "capsule_ranks": 2, "device": "cpu"} | train
    [problem] = problems(with_train(Config(), **settings))
    assert str(problem).startswith(message)


def test_zero_3_on_a_cpu_without_zero_is_no_problem() -> None:
    settings = {"num_workers": 2, "capsule_ranks": 2, "device": "cpu", "zero_stage": 3}
    assert problems(with_train(Config(), **settings)) == []


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("baseline_cnn", {"capsule_ranks": 2}, "BaselineCNN has no ClassCapsules to split"),
        ("capsnet", {"capsule_ranks": 28}, "27 children cannot be split over 28 ranks; use at most 27"),
        ("capsnet", {"capsule_ranks": 8}, "does not divide 28 workers"),
        ("reference", {"capsule_ranks": 2}, "class capsules of backend='reference'"),
    ],
)
def test_networks_that_cannot_be_split_are_refused(
    shapes: Path, kind: str, values: dict[str, int], message: str
) -> None:
    config = small_config(shapes, kind=kind if kind in SMALL else "capsnet", **values)
    if kind == "reference":
        config = config.model_copy(
            update={"routing": config.routing.model_copy(update={"backend": "reference"})}
        )
    with pytest.raises(ConfigError, match=rf"^train\.capsule_ranks={values['capsule_ranks']}: .*{message}"):
        check_network(config, 28)


def test_what_auto_chooses_is_refused_too(ranks: Any, shapes: Path) -> None:
    config = split_config(shapes, 2, engine="zero", zero_stage=3)
    messages = ranks(2).run(refusal_of_engine, config)
    assert all("train.zero_stage=3: partitions weights over all workers" in text for text in messages)


def refusal_of_engine(config: Config) -> str:
    """The message with which an engine is refused on a rank."""
    import torch.distributed as dist

    device, place = torch.device("cpu"), {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    network = build_rank_network(config, world_size=place["world_size"], device=device)
    try:
        build_engine(config, network, device=device, **place)
    except ConfigError as error:
        return str(error)
    return f"built in {os.getpid()}"
