"""Choose the tiles of a kernel: from the shape, or the fastest of a few, searched once.

A search runs at the first eager call of a shape on a GPU, never while a CUDA graph is captured or a program
is compiled, and its result is kept in a file, so that the next process starts with it. CAPSDIST_TUNE=0 leaves
it out. A plan decides in which order sums are taken: results are the same, bit for bit, as long as plans are.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TypeVar

import torch

from capsdist.routing.dynamic.fused.timing import milliseconds

__all__ = ["Plan", "Sizes", "default_plan", "fits_whole", "launch_tuned", "launches_early"]

T = TypeVar("T")

# Largest D and E that a tile holds; wider capsules are cut into blocks of these. A block of 32 of D leaves
# two children to a tile, which are neighbours in memory; of a whole one of 64 there is one.
MAX_DIM, WIDE_CHILD_DIM, WIDE_PARENT_DIM = 64, 32, 64
# Columns of a tile, DP * IT: a warp's 16 images then hold a product in 32 registers a thread.
COLUMNS = 64
# J * EP of one program that takes all parents: numbers of its sums an image, which should stay in registers,
# and bytes of an operand's row, of which 4 times 64 have to fit into shared memory (227 KB on an H100).
MAX_WHOLE, MAX_WHOLE_BYTES = 256, 640
# Shared memory that one program may have, on an H100 and on a B200. With less (A100, RTX 4090) all parents at
# once are no use: in fp32 they do not fit, in bf16 most of them would be spilled.
SHARED_BYTES = 232_448
# Parents that a program takes at a time where it need not take all, and the bytes of their operands' row.
MANY_PARENTS, MANY_PARENTS_BYTES = 5, 320
# Kernels whose programs take a range of children each; the others go over all parents, or all images.
WITH_RANGES = ("totals", "sweep", "state")
# Interpreted, a small tile costs as much time as a large one, and there is nothing to fill.
INTERPRETED_IMAGES, INTERPRETED_PROGRAMS = 16, 4


@dataclass(frozen=True)
class Sizes:
    """The shape of one call, the bytes of a number of its products' operands, and a program's memory."""

    num_images: int
    num_children: int
    num_parents: int
    child_dim: int
    parent_dim: int
    operand_bytes: int
    shared_bytes: int = SHARED_BYTES

    @property
    def wide(self) -> bool:
        """Whether D or E is cut into blocks; then other kernels run, see `wide`."""
        return max(self.child_dim, self.parent_dim) > MAX_DIM

    @property
    def padded(self) -> tuple[int, int]:
        """D and E of a tile: powers of two, E at least 16, the least depth of a tensor core's product."""
        child_dim = WIDE_CHILD_DIM if self.child_dim > MAX_DIM else power_of_two(self.child_dim)
        parent_dim = WIDE_PARENT_DIM if self.parent_dim > MAX_DIM else power_of_two(self.parent_dim)
        return child_dim, max(16, parent_dim)

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks that D and E are cut into."""
        child_dim, parent_dim = self.padded
        return -(-self.child_dim // child_dim), -(-self.parent_dim // parent_dim)


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
    if sizes.wide or sizes.shared_bytes < SHARED_BYTES:
        return False
    numbers = sizes.num_parents * sizes.padded[1]
    return numbers <= MAX_WHOLE and numbers * sizes.operand_bytes <= MAX_WHOLE_BYTES


def default_plan(kernel: str, sizes: Sizes, multiprocessors: int) -> Plan:
    """Choose tiles from the shape alone.

    16 images per warp: a warp then has its own rows of every product, and chained products stay in its
    registers; 4 warps are the fewest that Hopper's warp-group products take. A program uses most of the
    registers of half a multiprocessor, so that two run on each.

    Args:
        kernel: see `launch_tuned`.
        sizes: the shape.
        multiprocessors: of the GPU, or 0 for the interpreter.
    """
    whole = fits_whole(sizes) and kernel in ("totals", "sweep")
    parents = sizes.num_parents if whole else _several(sizes, MANY_PARENTS)
    loops_over_parents = kernel in ("normalise", "poses")  # one by one, with the next ones' loads under way
    images = 64 if multiprocessors else INTERPRETED_IMAGES
    children = max(1, COLUMNS // sizes.padded[0])
    plan = Plan(images, children, parents, 1, max(1, images // 16), 3 if loops_over_parents else 1)
    if kernel not in WITH_RANGES:
        return plan
    return with_splits(plan, sizes, 2 * multiprocessors or INTERPRETED_PROGRAMS)


def _several(sizes: Sizes, number: int) -> int:
    """Return `number` parents, or as many fewer as there are, or as have small enough operands."""
    if sizes.wide:
        return 1
    fitting = number * MANY_PARENTS_BYTES // MANY_PARENTS // (sizes.padded[1] * sizes.operand_bytes)
    return max(1, min(number, sizes.num_parents, fitting))


def with_splits(plan: Plan, sizes: Sizes, programs: int) -> Plan:
    """Return the plan with as many ranges of children as make about `programs` programs; none is empty."""
    others = -(-sizes.num_images // plan.images) * -(-sizes.num_parents // plan.parents) * sizes.blocks[1]
    tiles = -(-sizes.num_children // plan.children)
    wanted = min(tiles, max(1, programs // others))
    return replace(plan, splits=-(-tiles // -(-tiles // wanted)))


def candidates(kernel: str, sizes: Sizes, multiprocessors: int) -> list[Plan]:
    """Return the plans that a search compares, at most two dozen; the first is the default.

    Each combination of images, children, parents and stages is a program to compile, once; ranges of
    children are not.
    """
    first = default_plan(kernel, sizes, multiprocessors)
    parents = [first.parents]
    children = [first.children]
    if kernel == "weights":
        parents = sorted({_several(sizes, number) for number in (2, MANY_PARENTS, 10)})
    if kernel in ("totals", "state") and not fits_whole(sizes):
        parents = sorted({_several(sizes, number) for number in (4, 8)})
    if kernel in ("normalise", "poses") and not sizes.wide:
        children = [first.children, 2 * first.children]
    found = [first]
    for images, many, tile, stages in product((64, 128), parents, children, (1, 2)):
        plan = replace(
            first,
            images=images,
            parents=many,
            children=tile,
            warps=images // 16,
            stages=max(stages, first.stages),
        )
        if kernel in WITH_RANGES:
            found += [with_splits(plan, sizes, share * multiprocessors) for share in (1, 2, 3)]
        else:
            found.append(plan)
    return list(dict.fromkeys(found))


def launches_early() -> bool:
    """Return whether a kernel may start while the one before it ends: CAPSDIST_EARLY_LAUNCH=1.

    Off by default, because it needs a Hopper GPU and has not been measured.
    """
    return os.environ.get("CAPSDIST_EARLY_LAUNCH") == "1"


def launch_tuned(
    kernel: str,
    sizes: Sizes,
    variant: str,
    device: torch.device,
    launch: Callable[[Plan], T],
    search: bool = True,
) -> T:
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
        return launch(default_plan(kernel, sizes, multiprocessors=0))
    properties = torch.cuda.get_device_properties(device)
    multiprocessors = properties.multi_processor_count
    shared = replace(sizes, num_images=power_of_two(sizes.num_images))
    key = "/".join([properties.name, kernel, variant, *map(str, asdict(shared).values())])
    plans = _known()
    if key in plans and key not in _checked:
        _checked.add(key)
        if plans[key] not in candidates(kernel, shared, multiprocessors):
            del plans[key]  # of another version, or forged
    may_search = search and os.environ.get("CAPSDIST_TUNE") != "0"
    if key not in plans and may_search and not torch.cuda.is_current_stream_capturing():
        plans[key] = _fastest(candidates(kernel, shared, multiprocessors), launch)
        _write(plans)
    return launch(plans.get(key) or default_plan(kernel, shared, multiprocessors))


def _fastest(plans: list[Plan], launch: Callable[[Plan], object]) -> Plan:
    """Return the plan with the shortest time inside a CUDA graph; what does not fit the GPU is skipped."""
    from triton.runtime.errors import OutOfResources, PTXASError

    times: dict[Plan, float] = {}
    for plan in plans:
        with suppress(OutOfResources, PTXASError):
            times[plan] = milliseconds(partial(launch, plan))
    return min(times, key=times.__getitem__, default=plans[0])


_plans: dict[str, Plan] | None = None
_checked: set[str] = set()  # of the plans' keys, those that this process has compared with the candidates


def _file() -> Path:
    """Return where plans are kept: below XDG_CACHE_HOME, one file for each version of Triton.

    Raises: RuntimeError if this user has no home, as in some containers.
    """
    import triton

    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "capsdist" / f"routing_plans_triton_{triton.__version__}.json"


def _known() -> dict[str, Plan]:
    """Return the plans that were found before, by this process or another."""
    global _plans
    if _plans is None:
        try:
            _plans = {key: _typed(Plan(**plan)) for key, plan in json.loads(_file().read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError, RuntimeError):
            _plans = {}  # none yet, of another version, or nobody's: search again
    return _plans


def _typed(plan: Plan) -> Plan:
    if any(type(value) is not int for value in asdict(plan).values()):
        raise TypeError("a plan has another number than an integer")
    return plan


def _write(plans: dict[str, Plan]) -> None:
    """Keep the plans; a file that cannot be written only means another search next time."""
    with suppress(OSError, RuntimeError):
        path = _file()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=f".{path.stem}.", dir=path.parent)
        try:
            with open(descriptor, "w") as file:
                json.dump({key: asdict(plan) for key, plan in plans.items()}, file, indent=1)
                file.flush()
                os.fsync(descriptor)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
