"""A process whose memory `pipeline_memory` measures; it imports no more than what it does needs.

`python -m capsdist.bench.pipeline_process read SPLIT BATCH EPOCHS`, or `... pack PHOTOS ROOT`. The last line
that it prints is one JSON object.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import psutil

_MB = 1e6


def _read(split: str, global_batch_size: int, epochs: int) -> dict[str, list[float]]:
    """Return the resident memory after each epoch, in MB."""
    from capsdist.data import TrainStream

    stream = TrainStream(split, seed=0, global_batch_size=global_batch_size)
    resident = []
    for epoch in range(epochs):
        for _ in stream.epoch(epoch):
            pass
        resident.append(psutil.Process().memory_info().rss / _MB)
    return {"resident_mb": resident}


def _pack(photos: str, root: str) -> dict[str, float]:
    """Return the largest resident memory of this process, in MB, and the seconds that packing took."""
    from capsdist.data.sets.folder import FolderOptions, pack_folder

    start = time.perf_counter()
    pack_folder(Path(photos), FolderOptions("photos", root=root, validation=0, test=0))
    seconds = time.perf_counter() - start
    # Not that of getrusage: a new program inherits it from the process that started it.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak, "Linux tells the peak of the resident memory in /proc/self/status"
    return {"peak_mb": int(peak[1]) * 1024 / _MB, "seconds": seconds}


def _main(command: str, *arguments: str) -> None:
    if command == "read":
        split, global_batch_size, epochs = arguments
        print(json.dumps(_read(split, int(global_batch_size), int(epochs))))
    else:
        print(json.dumps(_pack(*arguments)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
