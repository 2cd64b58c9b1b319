"""Evaluations of small networks: what is stored of every image, ensembles, shifted copies, comparisons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_run import run_small, small_config
from torch import Tensor

from capsdist.analysis.comparison import compare_images, compare_seeds
from capsdist.analysis.evaluation import (
    StoredEvaluation,
    kept_evaluation,
    measure,
    read_evaluation,
    write_evaluation,
)
from capsdist.analysis.members import errors_by_size
from capsdist.cli.main import main
from capsdist.console import DONE, FAILED, INVALID
from capsdist.data import eval_batches
from capsdist.data.transforms.geometry import moved
from capsdist.errors import CheckpointError, ConfigError, DataError, DocumentError
from capsdist.runs.retention import checkpoint_name
from capsdist.runs.rundir import RunFolder
from capsdist.statistics import error_interval, mcnemar, paired_interval
from capsdist.storage import open_folder
from capsdist.train.checkpoint import load_model
from capsdist.train.evaluate import evaluate_checkpoint

END = "step_00000016"


OTHERS = {"cnn": "baseline_cnn", "em": "em_capsnet"}
METHODS = {"seed": {"learning_rate": 0.03}, "plain": {"learning_rate": 0.01}}
SMALL_RUNS = {
    f"{name}-{seed}": {"seed": seed, **method} for name, method in METHODS.items() for seed in (3, 4, 5)
}


@pytest.fixture(scope="module")
def runs(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short runs, which err: of two methods with three seeds each, and of other networks."""
    root = tmp_path_factory.mktemp("runs")
    others = {name: {"kind": kind, "max_steps": 1} for name, kind in OTHERS.items()}
    for name, settings in {**SMALL_RUNS, **others}.items():
        config = small_config(shapes, name=name, epochs=4, checkpoint_every_steps=16, **settings)
        run_small(config, root / name)
        [saved] = (root / name).glob("step-*")
        saved.rename(root / name / checkpoint_name(int(saved.name[5:])))
        RunFolder(root / name).begin(config)
    return root


def measured(*places: Path, **options) -> StoredEvaluation:
    return measure([str(place) for place in places], device="cpu", log=lambda text: None, **options)


def pixels_and_labels(shapes: Path) -> tuple[Tensor, Tensor]:
    """All test images in [0, 1] and their labels."""
    [batch] = eval_batches(shapes / "shapes" / "test", batch_size=12)
    return batch.images / 255, batch.labels


def scores_of(run: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        return load_model(max(run.glob("step_*")))[1](images).scores


def stored_scores(stored: StoredEvaluation) -> Tensor:
    assert stored.predictions is not None
    return torch.tensor(stored.predictions.scores)[:, 0]


def predicted(stored: StoredEvaluation) -> list[int]:
    assert stored.predictions is not None
    return [row[0] for row in stored.predictions.predicted]


def test_what_is_stored_is_what_the_network_says_of_every_image(runs: Path, shapes: Path) -> None:
    run = runs / "seed-3"
    stored = measured(run, batch_size=5)
    images, labels = pixels_and_labels(shapes)
    scores = scores_of(run, images)
    assert stored.predictions is not None
    assert stored.predictions.sample_ids == list(range(12))
    assert stored.predictions.labels == labels[:, None].tolist()
    assert predicted(stored) == scores.argmax(1).tolist()
    assert torch.allclose(stored_scores(stored), scores.amax(1), atol=2e-6)
    wrong = scores.argmax(1) != labels
    assert stored.predictions.wrong().tolist() == wrong.tolist()
    assert 0 < stored.error_percent == pytest.approx(100 * wrong.float().mean().item())
    assert stored.error_interval_percent == error_interval(stored.error_percent, 12)
    _, plain = evaluate_checkpoint(run / END, device="cpu", batch_size=5)
    assert {name: getattr(stored, name) for name in plain} == plain
    assert (stored.score, stored.seeds, stored.checkpoints) == ("length", [3], [str(run / END)])
    assert sum(row.num for row in stored.calibration.bins) == 12
    shares = [abs(1 - wrong.float().mean().item() - scores.amax(1).mean().item())]
    assert stored.calibration.expected_error >= shares[0] - 1e-5  # of one bin, the least there can be


@pytest.mark.parametrize(
    ("name", "score", "words"),
    [("cnn", "probability", "of probabilities"), ("em", "activation", "of activations")],
)
def test_scores_that_are_no_lengths_are_named(
    runs: Path, shapes: Path, name: str, score: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(runs / name), "--device", "cpu"]) == DONE
    *_, gap, _, _ = capsys.readouterr().out.splitlines()
    assert gap.endswith(words)
    stored, scores = read_evaluation(runs / name), scores_of(runs / name, pixels_and_labels(shapes)[0])
    assert stored.score == score
    expected = (scores.softmax(1) if name == "cnn" else scores).amax(1)
    assert torch.allclose(stored_scores(stored), expected, atol=2e-6)


def test_an_ensemble_sums_the_lengths_of_its_networks(runs: Path, shapes: Path) -> None:
    members = [runs / f"seed-{seed}" for seed in (3, 4, 5)]
    stored = measured(*members)
    images, labels = pixels_and_labels(shapes)
    total = sum((scores_of(run, images) for run in members), torch.zeros(12, 3))
    assert predicted(stored) == total.argmax(1).tolist()
    assert torch.allclose(stored_scores(stored), total.amax(1) / 3, atol=2e-6)
    assert stored.error_percent == pytest.approx(100 * (total.argmax(1) != labels).float().mean().item())
    assert (stored.seeds, len(stored.checkpoints)) == ([3, 4, 5], 3)
    with pytest.raises(
        CheckpointError, match=r"cnn.*: has model.kind='baseline_cnn', .* has 'capsnet'; give"
    ):
        measured(runs / "seed-3", runs / "cnn")


def shifted_by_hand(images: Tensor, down: int, right: int) -> Tensor:
    """Each pixel put where it goes, one by one."""
    placed = torch.zeros_like(images)
    height, width = images.shape[2:]
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                placed[:, :, y + down, x + right] = images[:, :, y, x]
    return placed


def test_a_move_goes_down_and_right() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    for down, right in ((0, 0), (2, -1), (-3, 4)):
        assert torch.equal(moved(images, down, right), shifted_by_hand(images, down, right))


@pytest.mark.parametrize(("shifts", "step"), [(1, 1), (2, 1), (4, 2)])
def test_scores_are_summed_over_all_shifted_copies(runs: Path, shapes: Path, shifts: int, step: int) -> None:
    stored = measured(runs / "seed-4", shifts=shifts, shift_step=step, batch_size=7)
    images, _ = pixels_and_labels(shapes)
    steps = range(-shifts, shifts + 1, step)
    copies = [shifted_by_hand(images, down, right) for down in steps for right in steps]
    mean = torch.stack([scores_of(runs / "seed-4", copy) for copy in copies]).mean(0)
    assert predicted(stored) == mean.argmax(1).tolist()
    assert torch.allclose(stored_scores(stored), mean.amax(1), atol=2e-6)
    assert (stored.shifts, stored.shift_step) == (shifts, step)
    plain = measured(runs / "seed-4")
    assert not torch.equal(stored_scores(stored), stored_scores(plain))


@pytest.mark.parametrize("shifts", [-1, 9])
def test_shifts_beyond_the_image_are_refused(runs: Path, shifts: int) -> None:
    with pytest.raises(ConfigError, match=rf"shifts={shifts}: must be from 0 to 8, the images have 9 pixels"):
        measured(runs / "seed-4", shifts=shifts)
    with pytest.raises(ConfigError, match="shift_step=2: must be at least 1, and shifts=3 a multiple of it"):
        measured(runs / "seed-4", shifts=3, shift_step=2)


def test_evaluate_writes_the_evaluation_of_a_run_and_prints_error_and_interval(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = runs / "seed-5"
    assert main(["evaluate", str(run), "--device", "cpu"]) == DONE
    *_, gap, place, last = capsys.readouterr().out.splitlines()
    stored = read_evaluation(run)
    low, high = stored.error_interval_percent
    assert place == f"evaluation: {run / 'evaluation.json'}"
    assert gap.endswith("of lengths (not probabilities)")
    figures = f"error_percent {stored.error_percent:.2f}  (95 % interval {low:.2f} to {high:.2f}, 12 images)"
    assert last == figures
    again = measured(run / END)
    assert stored.model_dump(exclude={"written"}) == again.model_dump(exclude={"written"})
    (run / "evaluation.json").unlink()
    options = ["--shifts", "1", "--device", "cpu"]
    assert main(["evaluate", str(run / END), *options]) == DONE
    assert not (run / "evaluation.json").exists()  # it is for the images as they are
    file = tmp_path / "new" / "shifted.json"
    assert main(["evaluate", str(run / END), str(runs / "seed-3"), *options, "--output", str(file)]) == DONE
    assert (read_evaluation(file).shifts, read_evaluation(file).seeds) == (1, [5, 3])
    assert main(["evaluate", str(run), "--output", str(tmp_path / "folder")]) == INVALID
    assert "error: output='" in capsys.readouterr().err


def test_a_damaged_evaluation_is_refused(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    assert main(["evaluate", str(runs / "seed-3"), "--device", "cpu", "--output", str(file)]) == DONE
    whole = json.loads(file.read_bytes())
    file.write_text(json.dumps(whole | {"error_percent": 0.0}))
    with pytest.raises(DocumentError, match=r"evaluation.json was changed: its checksum is another"):
        read_evaluation(tmp_path)
    del whole["crc32"]
    file.write_text(json.dumps(whole))
    with pytest.raises(DocumentError, match=r"evaluation.json has no checksum"):
        read_evaluation(file)
    values = measured(runs / "seed-3").model_dump()
    values["predictions"]["scores"].pop()
    with pytest.raises(ValueError, match="must be of the same images"):
        StoredEvaluation.model_validate(values)
    with pytest.raises(DataError, match=r"none/evaluation.json: there is no such file; `capsdist evaluate`"):
        read_evaluation(tmp_path / "none")


def test_two_networks_are_compared_image_by_image(
    runs: Path, shapes: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images, labels = pixels_and_labels(shapes)
    first, second = (scores_of(runs / name, images).argmax(1) != labels for name in ("seed-3", "plain-4"))
    found = compare_images(measured(runs / "seed-3"), measured(runs / "plain-4"))
    counts = [int(each.sum()) for each in (first & second, first & ~second, second & ~first)]
    assert [found.both, found.only_first, found.only_second] == counts
    assert found.p_value == mcnemar(*counts[1:])
    file = tmp_path / "plain.json"
    assert main(["evaluate", str(runs / "plain-4"), "--device", "cpu", "--output", str(file)]) == DONE
    capsys.readouterr()
    assert main(["compare", str(runs / "seed-3"), str(file), "--device", "cpu"]) == DONE
    *errors, wrong, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in errors] == [
        str(runs / "seed-3" / END),
        str(runs / "plain-4" / END),
    ]
    assert wrong.startswith(f"wrong: {counts[0]} in both, {counts[1]} only in the first")
    assert last == f"p_value {found.p_value:.3g}  (McNemar's exact test, two-sided)"
    other = measure([str(runs / "plain-4")], shapes / "shapes" / "train", device="cpu", log=lambda text: None)
    with pytest.raises(DataError, match=r"which has other images; evaluate both on one split"):
        compare_images(measured(runs / "seed-3"), other)
    none = measured(runs / "seed-3").model_copy(update={"predictions": None})
    with pytest.raises(DataError, match=r"has 12 images, for which no predictions are stored; give --split"):
        compare_images(none, none)


def test_two_methods_are_compared_by_the_errors_of_equal_seeds(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = [[measured(runs / f"{name}-{seed}") for seed in (3, 4, 5)] for name in ("seed", "plain")]
    found = compare_seeds(methods[0], methods[1][::-1])
    errors = [[each.error_percent for each in method] for method in methods]
    assert (found.seeds, [*found.first], [*found.second]) == ((3, 4, 5), *errors)
    assert (found.mean_difference, found.low, found.high) == pytest.approx(paired_interval(*errors))
    names = [[str(runs / f"{name}-{seed}") for seed in (5, 3, 4)] for name in ("seed", "plain")]
    assert main(["compare", *names[0], "--against", *names[1], "--device", "cpu"]) == DONE
    *rows, last = capsys.readouterr().out.splitlines()
    assert [row.split(":")[0] for row in rows] == ["  seed 3", "  seed 4", "  seed 5"]
    assert last.startswith(
        f"difference_percent {found.mean_difference:+.2f}  (95 % interval {found.low:+.2f}"
    )
    with pytest.raises(DataError, match=r"seeds \[3, 4\] and \[3, 5\]: give two or more runs of each method"):
        compare_seeds(methods[0][:2], methods[1][::2])
    with pytest.raises(DataError, match=r"is the second run with train.seed 3; give one"):
        compare_seeds([methods[0][0], methods[0][0]], methods[1][:2])
    with pytest.raises(DataError, match=r"is one of an ensemble, which has no seed"):
        compare_seeds([measured(runs / "seed-3", runs / "seed-4")], methods[1][:1])


def test_the_evaluation_that_a_run_has_of_the_same_checkpoint_is_read(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(runs / "seed-3", tmp_path / "run")
    assert kept_evaluation(str(run), best=False, log=print) is None
    stored = measured(run)
    write_evaluation(stored, open_folder(run))
    assert kept_evaluation(str(run), best=False, log=print) == stored
    assert kept_evaluation(str(run / END), best=False, log=print) == stored
    monkeypatch.setattr("capsdist.analysis.evaluation.measure", None)
    assert main(["compare", str(run), str(run)]) == DONE
    for change in (
        {"checkpoints": [str(run / "step_00000015")]},
        {"config": {**stored.config, "preset": "x"}},
    ):
        write_evaluation(stored.model_copy(update=change), open_folder(run))
        assert kept_evaluation(str(run), best=False, log=print) is None


@pytest.mark.parametrize("words", [["a"], ["a", "b", "c"], ["a", "b", "--against", "c"]])
def test_unequal_numbers_are_not_compared(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words]) == INVALID
    assert "give two, or equally many before and after --against" in capsys.readouterr().err
    assert main(["compare", "nowhere", "nothing"]) == FAILED


def test_a_place_without_a_checkpoint_is_refused_before_anything_is_measured(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capsdist.analysis.evaluation.measure", None)
    assert main(["compare", str(runs / "seed-3"), "nothing"]) == FAILED
    assert "no checkpoint below nothing" in capsys.readouterr().err


def test_more_images_than_are_stored_are_counted_and_calibrated_all_the_same(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(runs / "seed-3")
    monkeypatch.setattr("capsdist.analysis.predictions.MAX_PREDICTIONS", 11)
    told: list[str] = []
    stored = measure([str(runs / "seed-3")], device="cpu", log=told.append)
    assert stored.predictions is None
    assert any(line.startswith("no predictions are stored") for line in told)
    assert (stored.calibration, stored.error_percent) == (whole.calibration, whole.error_percent)


def test_the_error_by_number_of_members_is_that_of_each_ensemble(runs: Path) -> None:
    places = [runs / f"seed-{seed}" for seed in (4, 3, 5)]
    found = errors_by_size(
        [str(place) for place in places], device="cpu", batch_size=5, log=lambda text: None
    )
    assert found.num_images == 12
    assert found.alone == [measured(place).error_percent for place in places]
    together = [measured(*places[:number]) for number in (1, 2, 3)]
    assert found.together == pytest.approx([each.error_percent for each in together])
    assert found.intervals == [each.error_interval_percent for each in together]
