"""The rows of scaling in the table of costs."""

from __future__ import annotations

from capsdist.bench.aims import Aim, Row, most

__all__ = ["SCALING_ROWS"]


def _ratio(label: str, aim: Aim | None, figure: str) -> Row:
    return Row(label, aim, "scaling", figure, "", "ratio of medians", "config.rounds")


def _fitted(label: str, aim: Aim | None, figure: str) -> Row:
    return Row(label, aim, "scaling", figure, "", "fit, see the record")


def _worst(label: str, aim: Aim, figure: str) -> Row:
    return Row(label, aim, "scaling", figure, " %", "largest of all")


SCALING_ROWS = (
    _worst("planner, error of memory", most(10), "planner_memory_error_percent"),
    _worst("planner, error of FLOP", most(0), "planner_flop_error_percent"),
    _fitted("routing, memory against classes: exponent", None, "memory_exponent_classes"),
    _fitted("the same of the textbook form", None, "reference_memory_exponent_classes"),
    _ratio("2 workers, weak scaling efficiency", None, "weak_scaling_efficiency"),
    _ratio("the same of 2 processes that do not communicate", None, "independent_processes_efficiency"),
    _ratio("2 workers, strong scaling efficiency", None, "strong_scaling_efficiency"),
    Row(
        "Ray and the loop over bare PyTorch", None, "scaling", "loop_overhead_percent", " %",
        "mean of pairs of blocks", "figures.overhead_num_blocks",
    ),
    Row(
        "the same, upper end of the 95 % interval", most(5), "scaling", "loop_overhead_upper_percent", " %",
        "mean of pairs of blocks", "figures.overhead_num_blocks",
    ),
    Row(
        "ZeRO-3 over DDP, peak memory of one of 4 ranks", most(0.45), "scaling", "zero3_memory_ratio", "",
        "one run",
    ),
    Row(
        "803 M weights in the job, memory of 2 ranks", most(20), "scaling", "imagenet_layer_pss_gib", " GiB",
        "one run",
    ),
)  # fmt: skip
"""Efficiencies and exponents have no aim: what limits them stands beside them."""
