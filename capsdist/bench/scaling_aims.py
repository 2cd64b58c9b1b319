"""The rows of scaling in the table of costs."""

from __future__ import annotations

from capsdist.bench.aims import Aim, Row, most

__all__ = ["SCALING_ROWS"]


def _workers(label: str, figure: str) -> Row:
    return Row(label, None, "scaling-workers", figure, "", "ratio of medians", "config.rounds")


def _shapes(label: str, figure: str) -> Row:
    return Row(label, None, "scaling-shapes", figure, "", "fit, see the record")


def _planner(label: str, aim: Aim | None, figure: str) -> Row:
    return Row(label, aim, "scaling-planner", figure, " %", "largest", "figures.num_planner_configurations")


def _overhead(label: str, aim: Aim | None, figure: str) -> Row:
    return Row(label, aim, "scaling-overhead", figure, " %", "mean", "figures.overhead_num_blocks")


SCALING_ROWS = (
    _planner("planner, error of memory", most(10), "planner_memory_error_percent"),
    _planner("the same with what glibc keeps (an estimate)", None, "planner_process_error_percent"),
    _planner("planner, error of FLOP", most(0), "planner_flop_error_percent"),
    _shapes("routing, memory against classes: exponent", "memory_exponent_classes"),
    _shapes("the same of the textbook form", "reference_memory_exponent_classes"),
    _workers("2 workers, weak scaling efficiency", "weak_scaling_efficiency"),
    _workers("the same of 2 processes that do not communicate", "independent_processes_efficiency"),
    _workers("2 workers, strong scaling efficiency", "strong_scaling_efficiency"),
    _overhead("Ray and the loop over bare PyTorch", None, "loop_overhead_percent"),
    _overhead("the same, upper end of the 95 % interval", most(5), "loop_overhead_upper_percent"),
    Row(
        "cores that Ray's processes take beside the worker", None, "scaling-overhead", "ray_background_cores",
        "", "one run",
    ),
    Row(
        "ZeRO-3 over DDP, peak memory of one of 4 ranks", most(0.45), "scaling-zero", "zero3_memory_ratio",
        "", "one run",
    ),
    Row(
        "803 M weights in the job, memory of 2 ranks", most(20), "scaling-capsules",
        "imagenet_layer_pss_gib", " GiB", "one run",
    ),
)  # fmt: skip
"""Efficiencies and exponents have no aim: what limits them stands beside them."""
