"""Memory is counted to the byte: temporaries inside operators too, inputs and outputs not."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from capsdist.bench.memory import peak_bytes, saved_bytes
from capsdist.bench.routing import Case, forward_backward

KB = torch.ones(250)  # 1,000 bytes
SLACK = 64  # torch wraps the numbers of an expression as tensors of a few bytes


def test_outputs_and_inputs_do_not_count() -> None:
    assert peak_bytes(lambda: KB + 1) < SLACK


def test_the_largest_moment_counts() -> None:
    def run() -> Tensor:
        first = KB + 1  # 1,000 bytes
        both = first + (first + 2)  # at once: first, the sum in brackets, both
        return both.sum()  # 4 bytes, the only ones that remain

    assert 0 <= peak_bytes(run) - (3000 - 4) < SLACK


def test_what_is_freed_before_does_not_add_up() -> None:
    def run() -> None:
        for _ in range(5):
            _ = KB + 1

    assert peak_bytes(run) < 2000 + SLACK


def test_temporaries_inside_an_operator_count() -> None:
    transposed = torch.ones(100, 50, 2).transpose(0, 2)  # matmul has to copy it

    def run() -> Tensor:
        return transposed.flatten(1) @ torch.ones(5000, 1)

    assert peak_bytes(run) >= transposed.nbytes


def test_saved_bytes_count_each_storage_once_and_leave_out_what_is_excluded() -> None:
    left, right = torch.ones(10, 20, requires_grad=True), torch.ones(20, 30, requires_grad=True)
    assert saved_bytes(lambda: (left @ right, left @ right)) == 4 * (10 * 20 + 20 * 30)
    assert saved_bytes(lambda: left @ right, exclude=[right]) == 4 * 10 * 20


class Mark:
    """Lives as long as what it is put into."""


def test_no_graph_outlives_its_measurement() -> None:
    numbers, marks = torch.ones(3, requires_grad=True), []

    def run() -> Tensor:
        result = numbers.exp()  # which is saved by its own node
        mark = Mark()
        marks.append(weakref.ref(mark))
        assert result.grad_fn is not None
        result.grad_fn.metadata["mark"] = mark
        return result

    assert saved_bytes(run) == 12
    assert [mark() for mark in marks] == [None]


def test_streamed_routing_needs_an_eighth_of_the_references_memory() -> None:
    case = Case(num_images=100, num_children=288)
    streamed, reference = (
        peak_bytes(forward_backward(case, backend)) for backend in ("streamed", "reference")
    )
    assert 8 * streamed < reference


def test_streamed_scratch_is_bounded_with_many_children() -> None:
    case = Case(num_images=3, num_children=9216, iterations=2)
    assert peak_bytes(forward_backward(case, "streamed")) < 64e6


def test_streamed_scratch_is_bounded_with_many_parents() -> None:
    case = Case(num_images=3, num_children=40, num_parents=1000, iterations=2)
    assert peak_bytes(forward_backward(case, "streamed")) < 64e6
