"""Free memory: of the machine, or of the control group that the process is in, outer ones too."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsdist.storage.memory import free_memory, memory_here

MIB = 1 << 20
V2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
V1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def group(root: Path, names: tuple[str, ...], path: str, limit: str, used: int, cached: int = 0) -> None:
    """Write the files of a control group."""
    mount, limit_name, usage_name, cached_name = names
    folder = root / mount / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / usage_name).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{cached_name} {cached}\nother 7\n")


def member(root: Path, *lines: str) -> None:
    """Write which groups the process is in."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


def test_without_groups_it_is_that_of_the_machine(tmp_path: Path) -> None:
    assert 1 << 26 < free_memory(tmp_path) <= memory_here(tmp_path)
    assert free_memory() <= free_memory(tmp_path) + (1 << 30)


@pytest.mark.parametrize("names", [V2, V1])
@pytest.mark.parametrize("path", ["", "jobs/mine"])
def test_a_limit_counts_and_cached_files_are_free(tmp_path: Path, names, path) -> None:
    member(tmp_path, f"0::/{path}" if names is V2 else f"4:memory:/{path}")
    group(tmp_path, names, path, str(100 * MIB), 60 * MIB, 20 * MIB)
    assert memory_here(tmp_path) == 100 * MIB
    assert free_memory(tmp_path) == 60 * MIB


@pytest.mark.parametrize("names", [V2, V1])
def test_the_narrowest_of_nested_groups_counts(tmp_path: Path, names) -> None:
    member(tmp_path, "1:name=systemd:/", "4:cpu,memory:/jobs/mine", "0::/jobs/mine")
    group(tmp_path, names, "jobs/mine", str(90 * MIB), 10 * MIB)
    group(tmp_path, names, "jobs", str(80 * MIB), 60 * MIB)
    group(tmp_path, names, "", "max" if names is V2 else str((1 << 63) - 4096), 500 * MIB)
    assert memory_here(tmp_path) == 80 * MIB
    assert free_memory(tmp_path) == 20 * MIB


def test_in_a_container_the_group_at_the_top_is_its_own(tmp_path: Path) -> None:
    member(tmp_path, "0::/not/visible/here")
    group(tmp_path, V2, "", str(70 * MIB), 90 * MIB)  # more than the limit, for a moment
    assert (memory_here(tmp_path), free_memory(tmp_path)) == (70 * MIB, 0)
