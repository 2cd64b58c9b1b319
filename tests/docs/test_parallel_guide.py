"""The guide of capsule parallelism is true: its scripts run as printed, and what the first saves loads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capsdist import CapsNet
from limits import PATIENCE_S

GUIDE = Path(__file__).resolve().parents[2] / "capsdist" / "models" / "parallel" / "README.md"
SCRIPT, GO_ON = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the guide's script has run on two ranks."""
    path = tmp_path_factory.mktemp("guide")
    torchrun(path, SCRIPT, 2)
    return path


def torchrun(folder: Path, script: str, num_ranks: int) -> str:
    """Run `script` as the guide says; return what it printed."""
    (folder / "split.py").write_text(script)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    done = subprocess.run(
        [*words, "split.py"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_what_the_script_saves_is_a_whole_network_and_its_adam(folder: Path) -> None:
    model, optimizer = torch.load(folder / "whole.pt")
    network = CapsNet(conv_channels=8, primary_types=4, decoder=False)
    network.load_state_dict(model)
    adam = torch.optim.Adam(network.parameters())
    adam.load_state_dict(optimizer)
    weights = network.class_capsules.packed_weights
    assert adam.state[weights]["exp_avg"].shape == weights.shape


def test_three_ranks_go_on_from_it(folder: Path) -> None:
    printed = torchrun(folder, GO_ON, 3)
    for rank in range(3):  # 144 children
        assert f"rank {rank} goes on with (48, 10, 8, 16) weights" in printed
