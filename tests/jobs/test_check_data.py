"""What `--check` sees of the data: its indexes and the sizes of its shards, without torch and numpy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from job_helpers import TINY_FLAGS, write_tiny

from capsdist.cli import run_job
from capsdist.console import DONE, INVALID


@pytest.fixture
def own_root(tmp_path: Path) -> Path:
    """A data set of this test's own, to be damaged."""
    write_tiny(tmp_path)
    return tmp_path


def command(root: Path) -> list[str]:
    """The options of a check of a run on the data set at `root`."""
    return [*TINY_FLAGS, f"--data.root={root}", f"--train.storage={root}", "--check"]


def alter(root: Path, what: str) -> None:
    """Damage the data set at `root` in a way that its shards' content does not show."""
    index, shard = root / "tiny/train/index.json", root / "tiny/train/shard-00001.tar"
    match what:
        case "version":
            index.write_text(index.read_text().replace('"version": 2', '"version": 7'))
        case "digest":
            index.write_text(index.read_text().replace('"digest": "', '"digest": "0'))
        case "count":
            index.write_text(index.read_text().replace('"num_samples": 92', '"num_samples": 93'))
        case "folder":
            shard.unlink()
            shard.mkdir()
        case "missing":
            shard.unlink()
        case "longer":
            shard.write_bytes(shard.read_bytes() + b"0")


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        (
            "version",
            "index.json has format 'capsdist-blocks' version 7, this program reads 'capsdist-blocks' v",
        ),
        ("digest", "index.json was altered, it does not match its own digest; pack the set again"),
        ("count", "index.json was altered, it does not match its own digest; pack the set again"),
        ("folder", "shard-00001.tar is not a regular file; pack the set again, intact shards are kept"),
        ("missing", "shard-00001.tar is missing; pack the set again, intact shards are kept"),
        ("longer", "shard-00001.tar has 20481 bytes instead of 20480; pack the set again"),
    ],
)
def test_check_sees_that_index_and_shards_are_those_that_were_packed(capsys, own_root, what, problem):
    alter(own_root, what)
    assert run_job("A job.", ["mnist_paper"], argv=command(own_root)) == INVALID
    assert f"error: data.train_split='train': {own_root}/tiny/train/{problem}" in capsys.readouterr().err


def test_check_reads_an_index_of_any_size_that_the_format_allows(capsys, own_root):
    index = own_root / "tiny/train/index.json"
    index.write_bytes(index.read_bytes() + b" " * (65 << 20))
    assert run_job("A job.", ["mnist_paper"], argv=command(own_root)) == DONE, capsys.readouterr().err


def test_check_looks_at_data_without_torch_and_numpy(own_root):
    code = (
        "import sys\nfrom capsdist.cli import run_job\n"
        f"status = run_job('A job.', ['mnist_paper'], argv={command(own_root)})\n"
        "print(status, {'torch', 'ray', 'numpy'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[1:] == [f"{DONE} set()"]
