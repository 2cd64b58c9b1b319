"""capsdist/train/README.md is true: its loop runs as printed, and what it saves is found by evaluate.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from capsdist.data import write_split

ROOT = Path(__file__).resolve().parents[2]
[LOOP] = re.findall(r"```python\n(.*?)```", (ROOT / "capsdist/train/README.md").read_text(), flags=re.DOTALL)
PRESET = 'get_preset("digits_quickstart")'
TINY = f"""{PRESET}
config = config.model_copy(update={{
    "model": config.model.model_copy(update={{"conv_channels": 4, "primary_types": 2, "decoder": False}}),
    "train": config.train.model_copy(update={{"max_steps": 2, "global_batch_size": 8}}),
}})
"""


def test_the_loop_saves_what_evaluate_finds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train_part", "validation", "test"):
        images = rng.integers(0, 256, (20, 1, 28, 28), dtype=np.uint8)
        write_split(tmp_path / "data/digits" / split, images, np.arange(20) % 10, classes=list("0123456789"))
    script = LOOP.replace(f"config = {PRESET}\n", f"config = {TINY}")
    assert script.count(TINY) == 1
    run(tmp_path, "-c", script)
    printed = run(tmp_path, str(ROOT / "jobs/evaluate.py"), "runs/mine")
    assert "step_00000002" in printed
    assert "error_percent" in printed.splitlines()[-1]


def run(folder: Path, *words: str) -> str:
    """Run Python in `folder`; return what it printed, both streams."""
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
