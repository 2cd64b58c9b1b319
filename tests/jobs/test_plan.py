"""The command `capsdist plan`: rows, the cheapest that fits as a command, and what is missing."""

from __future__ import annotations

import pytest

from capsdist.cli.main import main

TRAIN = "capsdist train mnist_paper"


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    status = main(["plan", *words])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def test_the_cheapest_that_fits_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("mnist_paper", "--gpus", "4", "--price-per-gpu-hour", "3", "--train.global-batch-size=512")
    status, lines, _ = plan(capsys, *words)
    assert status == 0
    assert lines[0].startswith("mnist_paper: 8,215,568 parameters, 512 images a step on 4 devices of 80 GiB")
    assert any(line.startswith("Time is a projection, not a measurement") for line in lines)
    assert lines[-1].startswith(f"{TRAIN} --train.global-batch-size=512 --train.num-workers 4 ")
    rows = [line.split() for line in lines if line.strip().endswith(("fits", "capsule_ranks"))]
    able = [row for row in rows if row[-1] == "fits"]
    assert {(row[0], row[1]) for row in rows} == {(s, p) for s in "0123" for p in ("fp32", "bf16")}
    assert {row[3] for row in rows} == {"1", "2", "4"}
    costs = [float(row[15]) for row in able]
    assert costs == sorted(costs)
    best = able[0]
    assert f"--train.precision {best[1]} --train.gradient-accumulation-steps {best[4]} " in lines[-1]
    assert ("--train.engine ddp" in lines[-1]) == (best[0] == "0")


@pytest.mark.parametrize(
    ("preset", "parameters"), [("multimnist_baseline", "24,563,978"), ("multimnist_official", "11,361,968")]
)
def test_networks_of_the_paper_are_planned(
    preset: str, parameters: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines, _ = plan(capsys, preset)
    assert status == 0
    assert lines[0].startswith(f"{preset}: {parameters} parameters, 128 images a step")
    assert lines[-1].startswith(f"capsdist train {preset} ")


def test_the_command_is_a_valid_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    _, lines, _ = plan(capsys, "mnist_paper", "--gpus", "2")
    status = main([*lines[-1].split()[1:], "--print-config"])
    assert status == 0
    assert "num_workers: 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "column", "found"),
    [
        (("--train.precision=fp16",), 1, {"fp16"}),
        (("--train.engine", "ddp"), 0, {"0"}),
        (("--train.engine=zero", "--train.zero-stage=2"), 0, {"2"}),
        (("--train.zero_stage=3",), 0, {"0", "3"}),
        (("--train.capsule-ranks", "2"), 3, {"2"}),
        (("--routing.recompute=iterations",), 2, {"iterations"}),
    ],
)
def test_an_option_that_is_given_holds_for_all_rows(
    options: tuple[str, ...], column: int, found: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines, _ = plan(capsys, "mnist_paper", "--gpus=4", *options)
    assert status == 0
    assert {line.split()[column] for line in lines if " fits" in line and line.split()[0].isdigit()} == found
    [command] = [line for line in lines if line.startswith(TRAIN)]
    names = [word.partition("=")[0] for word in command.split() if word.startswith("--")]
    assert len(names) == len(set(names))


def test_what_a_plan_chooses_is_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, error = plan(capsys, "mnist_paper", "--train.num-workers=4")
    assert (status, lines) == (2, [])
    assert "train.num_workers=4" in error
    assert "--gpus" in error


def test_a_plan_can_be_checked_and_its_configuration_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(capsys, "mnist_paper", "--check")[:2] == (0, ["configuration is valid"])
    status, lines, _ = plan(capsys, "mnist_paper", "--print-config")
    assert (status, "preset: mnist_paper" in lines) == (0, True)


def test_less_memory_means_more_microbatches(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, _ = plan(capsys, "mnist_paper", "--memory-gib", "1.2")
    assert status == 0
    assert "--train.gradient-accumulation-steps 1 " not in lines[-1]


def test_a_largest_microbatch_is_kept_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--train.microbatch-size 20 --optim.kind sgd --optim.epsilon-placement pytorch"
    status, lines, _ = plan(capsys, "mnist_paper", *words.split())
    assert status == 0
    assert lines[-1].startswith(f"{TRAIN} {words} ")
    assert "--train.microbatch-size 19 " in lines[-1]  # 128 images in 7
    assert "accumulation" not in lines[-1]
    assert main([*lines[-1].split()[1:], "--print-config"]) == 0
    assert "microbatch_size: 19" in capsys.readouterr().out
    rows = [line.split() for line in lines if line.strip().endswith("fits")]
    ddp = next(row for row in rows if row[0] == "0")
    assert ddp[4] == "7"
    assert ddp[5] == ddp[7]  # weights and their momentum


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, err = plan(capsys, "mnist_paper", "--memory-gib", "1.05")
    assert status == 1
    assert "cheapest" not in "".join(lines)
    assert "nothing fits" in err
    assert "optimizer state" in err
    assert "--gpus" in err


@pytest.mark.parametrize(
    "words", [("--gpus", "0"), ("--gpus", "200"), ("--memory-gib", "-1"), ("--peak-tflops", "0")]
)
def test_devices_that_there_are_not(capsys: pytest.CaptureFixture[str], words: tuple[str, str]) -> None:
    status, _, err = plan(capsys, "mnist_paper", *words)
    assert status == 2
    assert words[0][2:].replace("-", "_") in err
    assert "workers" not in err


def test_a_family_without_cost_names_the_dry_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from capsdist.config import models
    from capsdist.models import registry

    monkeypatch.setattr(registry, "UNPRICED", replace(registry.CAPSNET, cost=None), raising=False)
    kind = "capsdist.models.registry:UNPRICED"
    status, _, err = plan(capsys, "mnist_paper", "--model.kind", kind)
    models.find_family.cache_clear()
    assert status == 1
    assert "--train.dry-run" in err
