"""Compare two commits: losses of every step and last weights of every preset in small, bit for bit.

    python tests/same_numbers.py --base COMMIT --record

trains each preset that version 0.1 had for a few steps through its job, with the code of COMMIT and with that
of HEAD, on the same images, on this machine, with one thread. The last line is one JSON object; exit status
1 if a number differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro
from safetensors.numpy import load_file

from capsdist.bench.record import write_record
from capsdist.config import PRESETS
from capsdist.config.images import sides
from version_1 import write_version_1

ROOT = Path(__file__).resolve().parents[1]
STEPS, BATCH, NUM_TRAIN, NUM_TEST = 6, 8, 40, 16
NAMES = list(json.loads((ROOT / "tests/unit/presets_of_0_1.json").read_text()))
JOBS = {"digits": "train_mnist.py", "cifar10": "train_cifar.py"}


def write_images(root: Path) -> None:
    """Write random images for the data set of every preset, in the format that both commits read."""
    draw = np.random.default_rng(11)
    for config in (PRESETS[name]() for name in NAMES):
        if (root / config.data.name).exists():
            continue
        shape = config.model.in_channels, *sides(32 if config.data.crop else config.model.image_size)
        # the earlier commit reads train and test, and validates on test
        for splits, number in ((("train", "train_part"), NUM_TRAIN), (("test", "validation"), NUM_TEST)):
            images = draw.integers(0, 256, (number, *shape), dtype=np.uint8)
            labels = np.arange(number, dtype=np.int64) % config.model.num_classes
            classes = list(map(str, range(config.model.num_classes)))
            for split in splits:
                write_version_1(root / config.data.name / split, images, labels, classes, block_size=8)


def train(tree: Path, preset: str, data: Path, runs: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """Return the losses of all steps and of the last evaluation, and the last weights, of `preset`."""
    name = PRESETS[preset]().data.name
    # options have the names of the earlier commit, which the later one accepts
    command = [
        sys.executable, str(tree / "jobs" / JOBS.get(name, f"train_{name}.py")), "--preset", preset,
        "--train.storage", str(runs), "--train.name", preset, "--data.root", str(data), "--data.lanes", "2",
        "--train.max-steps", str(STEPS), "--train.global-batch", str(BATCH), "--train.workers", "1",
        "--train.device", "cpu", "--train.precision", "fp32", "--train.log-every-steps", "1",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=runs, env=env, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (runs / preset / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    losses.append([row["loss"] for row in rows if row["kind"] in ("validation", "test")][-1])
    newest = max((runs / preset).glob("step_*"))
    return losses, load_file(newest / "model.safetensors")


def differing(first: tuple, second: tuple) -> int:
    """Return how many losses and tensors differ by a bit."""
    (losses, weights), (other_losses, other_weights) = first, second
    assert len(losses) == len(other_losses) > STEPS
    assert weights.keys() == other_weights.keys()
    pairs = [(weights[name].tobytes(), other_weights[name].tobytes()) for name in weights]
    return sum(one != other for one, other in [*zip(losses, other_losses, strict=True), *pairs])


def main(base: str, record: bool = False) -> int:
    """Compare the working tree with a commit.

    Args:
        base: Commit to compare with.
        record: Write a record below jobs/records.
    """
    figures: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tree, data = place / "tree", place / "data"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), base], check=True)
        try:
            write_images(data)
            for preset in NAMES:
                found = []
                for number, code in enumerate((tree, ROOT)):
                    runs = place / f"runs-{number}"
                    runs.mkdir(exist_ok=True)
                    found.append(train(code, preset, data, runs))
                figures[preset] = differing(*found)
                print(preset, f"{len(found[0][0])} losses and {len(found[0][1])} tensors,", end=" ")
                print(f"{figures[preset]} differ", flush=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    config = {"base": base, "steps": STEPS, "global_batch_size": BATCH, "threads": 1}
    if record:
        where = write_record(
            ROOT / "jobs" / "records", "same-numbers", config=config, figures=dict(figures), log=""
        )
        print("recorded in", where)
    print(json.dumps({"base": base, "differing": figures}))
    return int(any(figures.values()))


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
