"""`train.microbatch_size` auto: a batch that does not fit is split, and the search leaves no trace.

The steps have 8 images, so the sizes tried are 8, 4, 2 and 1 on one rank and 4, 2 and 1 on two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hungry_network import Hungry, HungryConfig
from small_run import own_rank, run_small, same_checkpoint, small_config, without_times

from capsdist.config import Config, NoOptions
from capsdist.errors import MemoryExhaustedError
from capsdist.train import microbatch
from capsdist.train.checkpoint import read_checkpoint

MIB = 1 << 20
FINAL = "step-0012"


def hungry(root: Path, *, most: int = 1000, mib: int = 0, **train: Any) -> Config:
    """The small run with a network that has memory for `most` images or needs `mib` for each."""
    model = HungryConfig(image_size=9, num_classes=3, most=most, mib=mib)
    config = small_config(root, **{"microbatch_size": "auto", **train})
    return config.model_copy(update={"model": model, "routing": NoOptions(), "loss": NoOptions()})


def sizes(rows: list[dict[str, Any]]) -> list[int]:
    return [row["microbatch_size"] for row in rows if row["kind"] == "start"]


@pytest.mark.parametrize(("world_size", "most", "size"), [(1, 3, 2), (1, 8, 8), (2, 2, 1), (2, 5, 4)])
def test_the_run_is_that_of_the_size_which_fits_everywhere(
    on_ranks, shapes: Path, tmp_path: Path, world_size: int, most: int, size: int
) -> None:
    found = on_ranks(world_size, run_small, hungry(shapes, most=most), tmp_path / "auto")
    assert sizes(found) == [size]
    config = hungry(shapes, microbatch_size=size)
    assert without_times(found) == without_times(on_ranks(world_size, run_small, config, tmp_path / "set"))
    assert same_checkpoint(tmp_path / "auto" / FINAL, tmp_path / "set" / FINAL)
    assert read_checkpoint(tmp_path / "auto" / FINAL).config.train.microbatch_size == size


def test_the_trial_of_a_gpu_takes_the_first_half_that_fits_and_undoes_what_it_did(shapes: Path) -> None:
    config, device = hungry(shapes, most=3), torch.device("cpu")
    torch.manual_seed(1)
    model = Hungry(config.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    with microbatch._undone(model, device):
        passes = microbatch._passes(config, model, 8, device)
        assert microbatch._by_trial(passes, [8, 4, 2, 1]) == (2, "")
        assert microbatch._by_trial(passes, [8, 4]) == (0, "CUDA out of memory. Tried to hold 4 images")
        assert model.seen == 2
        assert model.layer.weight.grad is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_another_error_is_not_taken_for_one_of_memory(shapes: Path, tmp_path: Path) -> None:
    config = hungry(shapes)
    wrong = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 2})})
    with pytest.raises(Exception, match="classes"):
        run_small(wrong, tmp_path)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        microbatch._tried(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_goes_on_keeps_its_size(on_ranks, shapes: Path, tmp_path: Path, world_size: int) -> None:
    whole, less = tmp_path / "whole", hungry(shapes, most=3, checkpoint_every_steps=5)
    on_ranks(world_size, run_small, less, whole)
    more = hungry(shapes, checkpoint_every_steps=5)
    rows = on_ranks(world_size, run_small, more, tmp_path / "on", whole / "step-0005")
    assert sizes(rows) == [2]
    assert same_checkpoint(tmp_path / "on" / FINAL, whole / FINAL)
    if world_size == 1:
        assert sizes(run_small(hungry(shapes, most=1), tmp_path / "one", whole / "step-0005")) == [1]
        moved = more.model_copy(update={"train": more.train.model_copy(update={"num_workers": 2})})
        assert sizes(run_small(moved, tmp_path / "moved", whole / "step-0005")) == [8]


def run_with_free(free: int, config: Config, folder: Path) -> list[dict[str, Any]]:
    """The run on a machine with `free` bytes of memory for each rank."""
    true = microbatch.free_memory
    microbatch.free_memory = lambda: free * own_rank()[1]
    try:
        return run_small(config, folder)
    finally:
        microbatch.free_memory = true


@pytest.mark.parametrize(("world_size", "free", "size"), [(1, 720, 4), (2, 360, 2)])
def test_memory_that_is_measured_limits_the_size_on_a_cpu(
    ranks, shapes: Path, tmp_path: Path, world_size: int, free: int, size: int
) -> None:
    """4 images take 384 MiB and what torch needs besides, 8 take 768; 4/5 of the free memory is used.

    The ranks are processes of their own: the memory of this one also depends on the tests before.
    """
    config = hungry(shapes, mib=96, max_steps=1)
    assert sizes(ranks(world_size).run(run_with_free, free * MIB, config, tmp_path)[0]) == [size]


@pytest.mark.parametrize(
    ("free", "mib", "most", "reason"),
    [
        (50, 192, 1000, r"it takes \d\d\d MiB, 39 MiB are free for it"),
        (0, 48, 1000, "0 MiB are free for it"),
        (1000, 1, 0, "CUDA out of memory. Tried to hold 1 images"),
    ],
)
def test_no_room_for_one_image_is_an_error(
    shapes: Path, tmp_path: Path, free: int, mib: int, most: int, reason: str
) -> None:
    with pytest.raises(MemoryExhaustedError, match=reason) as caught:
        run_with_free(free * MIB, hungry(shapes, mib=mib, most=most), tmp_path)
    message = str(caught.value)
    assert message.startswith("train.microbatch_size='auto': the memory for one image (1x9x9) in a forward ")
    assert message.endswith("a machine with more memory, or a smaller network")
