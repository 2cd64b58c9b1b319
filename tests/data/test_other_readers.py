"""The code in data/README that reads our shards with a DataLoader and with Ray Data is run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from capsdist.data import write_split
from limits import PATIENCE_S

NUM = 300
CHECK = """
    seen.append((numpy.asarray({images}), numpy.asarray({labels})))
images, labels = (numpy.concatenate(parts) for parts in zip(*seen))
assert (images.dtype, labels.dtype) == (numpy.uint8, numpy.int64), (images.dtype, labels.dtype)
order = numpy.argsort(images.reshape(len(images), -1)[:, :2].astype(int) @ [1, 256])
numpy.savez("seen.npz", images=images[order], labels=labels[order])
"""


def code(repo: Path, name: str) -> str:
    """The block of code behind the comment `name`."""
    text = (repo / "capsdist/data/README.md").read_text()
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found, name
    return found[1]


def script(repo: Path, name: str, images: str, labels: str) -> str:
    """That code as a program that keeps what its loop sees; guarded, because data loaders start processes."""
    before, loop, rest = code(repo, name).partition("\nfor ")
    assert rest.count("...") == 1
    body = loop + rest.replace("    ...", CHECK.format(images=images, labels=labels).strip("\n"))
    functions, setup, made = before.partition("\nshards = ")
    lines = (setup + made + body).splitlines()
    return f"import numpy\n{functions}\nif __name__ == '__main__':\n    seen = []\n" + "\n".join(
        f"    {line}" for line in lines
    )


@pytest.mark.parametrize(
    ("name", "images", "labels"),
    [("webdataset", "batch", "labels"), ("ray", "batch['image']", "batch['label']")],
)
def test_the_code_in_the_readme_yields_every_image_once(repo, tmp_path, name, images, labels):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (NUM, 1, 4, 5), dtype=np.uint8)
    stored[:, 0, 0, 0], stored[:, 0, 0, 1] = np.arange(NUM) % 256, np.arange(NUM) // 256
    folder = tmp_path / "data/digits/train"
    write_split(
        folder, stored, np.arange(NUM) % 10, classes=list("0123456789"), block_size=32, shard_size=100
    )
    (tmp_path / "read.py").write_text(script(repo, name, images, labels))
    result = subprocess.run(
        [sys.executable, "read.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    seen = np.load(tmp_path / "seen.npz")
    assert np.array_equal(seen["images"], stored)
    assert np.array_equal(seen["labels"], np.arange(NUM) % 10)
