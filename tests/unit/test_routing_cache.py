"""The cache that a thread can count on, read from folders such as Linux has."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsdist.routing.common.cache import LEAST, MOST, SYSFS, cache_bytes_per_thread

KIB, MIB = 1 << 10, 1 << 20


def put(folder: Path, *caches: tuple[int, str, str]) -> Path:
    """Write caches of (level, size, processors that share it) as the kernel does."""
    for number, texts in enumerate(caches):
        path = folder / f"index{number}"
        path.mkdir()
        for name, text in zip(("level", "size", "shared_cpu_list"), texts, strict=True):
            (path / name).write_text(f"{text}\n")
    return folder


FIRST = (1, "32K", "0")
CASES = [
    pytest.param([FIRST, (2, "1024K", "0"), (3, "16384K", "0-7,64-71")], 1 * MIB, id="server"),
    pytest.param([FIRST, (2, "2048K", "0-1"), (3, "36M", "0-23")], 1 * MIB + 256 * KIB, id="desktop"),
    pytest.param([FIRST, (2, "512K", "0-1"), (3, "4096K", "0-7")], LEAST, id="small"),
    pytest.param([FIRST, (2, "1024K", "0"), (3, "32768K", "0-1")], MOST, id="virtual"),
    pytest.param([FIRST], MOST, id="only-the-first-level"),
    pytest.param([], MOST, id="unknown"),
]


@pytest.mark.parametrize(("caches", "expected"), CASES)
def test_half_of_a_threads_share(tmp_path: Path, caches: list, expected: int) -> None:
    assert cache_bytes_per_thread(put(tmp_path, *caches)) == expected


def test_a_cache_that_does_not_tell_its_size_is_left_out(tmp_path: Path) -> None:
    folder = put(tmp_path, (2, "4096K", "0"), (3, "1M", "0"))
    (folder / "index1" / "size").unlink()
    assert cache_bytes_per_thread(folder) == 2 * MIB


@pytest.mark.parametrize(("size", "shared"), [("1T", "0"), ("512", "0"), ("", "0"), ("1M", ""), ("1M", "x")])
def test_a_cache_told_in_another_way_counts_as_unknown(tmp_path: Path, size: str, shared: str) -> None:
    assert cache_bytes_per_thread(put(tmp_path, (2, size, shared))) == MOST


def test_this_machine_has_an_answer() -> None:
    assert LEAST <= cache_bytes_per_thread(SYSFS) <= MOST
