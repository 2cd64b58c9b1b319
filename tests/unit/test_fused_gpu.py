"""What only a GPU can show of the fused backend: CUDA graphs, and the search for the fastest plan."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from fused_cases import DEVICE, fused, fused_packed, largest_error, operands

from capsdist.routing import pack_weights, route_reference
from capsdist.routing.dynamic.fused import fused_refusal, plan
from routing_cases import values_and_gradients

pytestmark = pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")


def test_is_accepted() -> None:
    given = operands((2, 5, 3, 2, 4), seed=0).to(torch.float32)
    assert fused_refusal(given.child_poses, pack_weights(given.weights)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("early", ["0", "1"])
def test_a_cuda_graph_replays_it_on_new_operands(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, early: str
) -> None:
    if early == "1" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("kernels are launched early from Hopper on")
    monkeypatch.setenv("CAPSDIST_TUNE", "0")
    monkeypatch.setenv("CAPSDIST_EARLY_LAUNCH", early)
    given, other = (operands((70, 130, 10, 8, 16), seed=s).to(dtype) for s in (1, 2))
    poses = given.child_poses.clone().requires_grad_()
    weights, grad = pack_weights(given.weights).requires_grad_(), given.grad.clone()

    def step() -> tuple[torch.Tensor, ...]:
        result = fused_packed(poses, weights, 3)
        return result.detach(), *torch.autograd.grad(result, (poses, weights), grad)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        poses.copy_(other.child_poses)
        weights.copy_(pack_weights(other.weights))
        grad.copy_(other.grad)
    graph.replay()
    monkeypatch.setenv("CAPSDIST_EARLY_LAUNCH", "0")
    for found, expected in zip(captured, step(), strict=True):
        assert torch.equal(found, expected)


def test_a_search_is_made_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CAPSDIST_TUNE", raising=False)
    monkeypatch.setattr(plan, "_plans", None)
    given = operands((70, 130, 3, 8, 16), seed=3).to(torch.float32)
    expected = values_and_gradients(route_reference, given.to(torch.float64), 3)
    assert largest_error(values_and_gradients(fused, given, 3), expected) < 3e-5
    (file,) = (tmp_path / "capsdist").iterdir()
    kept = json.loads(file.read_text())
    searched = {key.split("/")[1] for key in kept}
    whole = {"totals", "sweep", "weights"}
    assert searched in (whole, {"totals", "normalise", "poses", "state", "weights"})  # by its shared memory
    monkeypatch.setattr(plan, "_plans", None)
    monkeypatch.setattr(plan, "_fastest", None)  # a second search would call it
    assert largest_error(values_and_gradients(fused, given, 3), expected) < 3e-5


def test_other_threads_may_allocate_while_plans_are_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CAPSDIST_TUNE", raising=False)
    monkeypatch.setattr(plan, "_plans", None)
    done, failed = threading.Event(), []

    def pin() -> None:
        """Allocate pinned memory, never the same size, as a loader of data does."""
        size = 1 << 20
        try:
            while not done.is_set():
                torch.empty(size, dtype=torch.uint8, pin_memory=True)
                size = (3 * size) % (1 << 28) + 4096
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        given = operands((70, 130, 3, 8, 16), seed=4).to(torch.float32)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):  # nor does the stream matter
            found = values_and_gradients(fused, given, 3)
            torch.cuda.synchronize()
    finally:
        done.set()
        thread.join()
    assert not failed
    assert largest_error(found, values_and_gradients(route_reference, given.to(torch.float64), 3)) < 3e-5


def test_the_operands_gpu_need_not_be_the_current_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CAPSDIST_TUNE", raising=False)
    monkeypatch.setattr(plan, "_plans", None)
    given = operands((70, 130, 3, 8, 16), seed=5).to(torch.float32)
    expected = values_and_gradients(
        fused, given, 3
    )  # searches on the first, whose graphs have a stream there
    monkeypatch.setattr(plan, "_plans", {})
    moved = {name: None if value is None else value.to("cuda:1") for name, value in vars(given).items()}
    found = values_and_gradients(fused, replace(given, **moved), 3)
    assert all(value.device.index == 1 for value in found.values())
    assert largest_error({name: value.to(DEVICE) for name, value in found.items()}, expected) < 3e-5


def test_a_layer_of_imagenets_size_routes_without_its_votes() -> None:
    sizes = num_images, num_children, num_parents, child_dim, parent_dim = (4, 6272, 1000, 8, 16)
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("needs 12 GB of free GPU memory")
    weights = 0.1 * torch.randn(
        num_parents, parent_dim, child_dim, num_children, device=DEVICE, dtype=torch.bfloat16
    )
    poses = torch.randn(num_images, num_children, child_dim, device=DEVICE, dtype=torch.bfloat16)
    weights.requires_grad_()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    (grad,) = torch.autograd.grad(fused_packed(poses, weights, 3).float().square().sum(), weights)
    # The gradient is 1.6 GB; the votes of these images would be 0.8 GB.
    extra = torch.cuda.max_memory_allocated() - before - grad.nbytes
    assert extra < num_images * num_children * num_parents * 4, sizes
    assert bool(grad.isfinite().all())
