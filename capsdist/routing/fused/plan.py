"""Which tiles a kernel takes: sensible ones from the shape alone, or the fastest of a few, searched once.

A search runs at the first eager call of a shape on a GPU, never while a CUDA graph is captured or a program
is compiled, and its result is kept in a file, so that the next process starts with it. CAPSDIST_TUNE=0 leaves
it out. A plan decides in which order sums are taken: results are the same, bit for bit, as long as plans are.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

__all__ = ["Plan", "Sizes", "default_plan", "fits_whole", "launch_tuned"]

T = TypeVar("T")

# Multiprocessors that defaults are made for where there is no GPU to ask: an H100 has 132.
INTERPRETED_MULTIPROCESSORS = 6
# Columns of a tile, DP * IT: a warp's 16 images then hold a product in 32 registers a thread.
COLUMNS = 64
# Numbers an image, J * EP, of the sums that one program of `sum_totals` or `sweep` keeps in registers.
MAX_WHOLE = 256


@dataclass(frozen=True)
class Sizes:
    """The shape of one call. `padded` are D and E as the kernels see them, powers of two."""

    num_images: int
    num_children: int
    num_parents: int
    child_dim: int
    parent_dim: int

    @property
    def padded(self) -> tuple[int, int]:
        """D and E padded: powers of two, E at least 16, the least depth of a tensor core's product."""
        return power_of_two(self.child_dim), max(16, power_of_two(self.parent_dim))


@dataclass(frozen=True)
class Plan:
    """Images and children of a tile, parents a program, ranges of children, warps, stages of loads."""

    images: int
    children: int
    parents: int
    splits: int
    warps: int
    stages: int


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


def fits_whole(sizes: Sizes) -> bool:
    """Return whether one program can hold all parents in registers, and normalise over them by itself."""
    return sizes.num_parents * sizes.padded[1] <= MAX_WHOLE


def default_plan(kernel: str, sizes: Sizes, multiprocessors: int) -> Plan:
    """Choose tiles from the shape: 16 images a warp, and about as many programs as multiprocessors."""
    child_dim, _ = sizes.padded
    images = min(128, max(16, power_of_two(sizes.num_images)))
    children = max(8, COLUMNS // child_dim)
    parents = sizes.num_parents
    if kernel == "weights":
        parents = 1 if sizes.num_parents < 64 else 2
    elif not fits_whole(sizes):
        parents = min(4, sizes.num_parents)
    plan = Plan(images, children, parents, 1, max(1, images // 16), 2)
    return with_splits(plan, sizes, multiprocessors)


def with_splits(plan: Plan, sizes: Sizes, programs: int) -> Plan:
    """Return the plan with as many ranges of children as make about `programs` programs."""
    others = -(-sizes.num_images // plan.images) * -(-sizes.num_parents // plan.parents)
    tiles = -(-sizes.num_children // plan.children)
    wanted = min(tiles, max(1, -(-programs // others)))
    return replace(plan, splits=-(-tiles // -(-tiles // wanted)))  # no range is left empty


def candidates(kernel: str, sizes: Sizes, multiprocessors: int) -> list[Plan]:
    """Return the plans that a search compares, a dozen at most; the first is the default."""
    first = default_plan(kernel, sizes, multiprocessors)
    found = [first]
    for images in (32, 64, 128):
        for children in (first.children, 2 * first.children):
            if images > max(32, power_of_two(sizes.num_images)):
                continue
            tile = replace(first, images=images, children=children, warps=images // 16)
            found += [with_splits(tile, sizes, share * multiprocessors) for share in (1, 2)]
    return list(dict.fromkeys(found))


def launch_tuned(
    kernel: str, sizes: Sizes, variant: str, device: torch.device, launch: Callable[[Plan], T], search: bool = True
) -> T:  # fmt: skip
    """Call `launch` with the plan for this kernel, shape and GPU, after a search if it is the first time.

    Args:
        kernel: `totals`, `sweep`, `normalise`, `poses`, `state` or `weights`.
        sizes: the shape; batches of up to the next power of two share a plan.
        variant: what else makes another program of the kernel, such as the dtype.
        device: where it runs; without a GPU it is interpreted, and nothing is timed.
        launch: runs the kernel; while searching it is called many times.
        search: False where running the kernel twice would change its result.
    """
    if device.type != "cuda":
        return launch(default_plan(kernel, sizes, INTERPRETED_MULTIPROCESSORS))
    properties = torch.cuda.get_device_properties(device)
    shared = replace(sizes, num_images=power_of_two(sizes.num_images))
    key = "/".join([properties.name, kernel, variant, *map(str, asdict(shared).values())])
    plans = _known()
    if key not in plans and search and os.environ.get("CAPSDIST_TUNE") != "0":
        if torch.cuda.is_current_stream_capturing():
            return launch(default_plan(kernel, sizes, properties.multi_processor_count))
        plans[key] = _fastest(candidates(kernel, shared, properties.multi_processor_count), launch)
        _write(plans)
    plan = plans.get(key) or default_plan(kernel, sizes, properties.multi_processor_count)
    return launch(plan)


def _fastest(plans: list[Plan], launch: Callable[[Plan], object]) -> Plan:
    """Return the plan with the shortest time inside a CUDA graph; one that does not fit the GPU is skipped."""
    from triton.runtime.errors import OutOfResources, PTXASError
    from triton.testing import do_bench_cudagraph

    times: dict[Plan, float] = {}
    for plan in plans:
        try:
            times[plan] = float(do_bench_cudagraph(lambda: launch(plan), rep=10, return_mode="median"))  # noqa: B023
        except (OutOfResources, PTXASError):
            continue
    return min(times, key=times.__getitem__, default=plans[0])


_plans: dict[str, Plan] | None = None


def _file() -> Path:
    """Return where plans are kept: below XDG_CACHE_HOME, one file for each version of Triton."""
    import triton

    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "capsdist" / f"routing_plans_triton_{triton.__version__}.json"


def _known() -> dict[str, Plan]:
    """Return the plans that were found before, by this process or another."""
    global _plans
    if _plans is None:
        try:
            _plans = {key: Plan(**plan) for key, plan in json.loads(_file().read_text()).items()}
        except (OSError, ValueError, TypeError):  # none yet, or of another version: search again
            _plans = {}
    return _plans


def _write(plans: dict[str, Plan]) -> None:
    """Keep the plans; a file that cannot be written only means another search next time."""
    path = _file()
    part = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({key: asdict(plan) for key, plan in plans.items()}, indent=1))
        part.replace(path)
    except OSError:
        return
