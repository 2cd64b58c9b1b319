"""DeepSpeed's configuration of a ZeRO engine."""

from __future__ import annotations

from typing import Any

__all__ = ["bucket_elements", "zero_settings"]

_BUCKET_ELEMENTS = 50_000_000
"""Largest gradient bucket (200 MB); DeepSpeed's default of 2 GB is allocated even for small networks."""

_PASSING_ELEMENTS = 5_000_000
"""Numbers (20 MB) that a rank may always gather beyond its part at stage 3, see `_stage_3`."""


def zero_settings(
    stage: int,
    num_parameters: int,
    *,
    max_grad_norm: float,
    microbatch_size: int,
    gradient_accumulation_steps: int,
) -> dict[str, Any]:
    """Return the configuration of `stage` for a network of so many trained parameters."""
    return {
        "train_micro_batch_size_per_gpu": microbatch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        # at stage 0 the gradients are whole, and the engine clips them as the plain engine does
        "gradient_clipping": max_grad_norm if stage else 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket_elements(stage, num_parameters),
            **(_stage_3(num_parameters) if stage == 3 else {}),
        },
        "zero_allow_untested_optimizer": True,  # sgd is not on its list; tests/distributed/test_zero.py
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU every step
        "log_level": "error",
    }


def bucket_elements(stage: int, num_parameters: int) -> int:
    """Return the numbers (of 4 bytes) of the gradient bucket, at stage 3 also of what else passes through."""
    limit = max(_PASSING_ELEMENTS, num_parameters // 32) if stage == 3 else num_parameters
    return min(num_parameters, limit, _BUCKET_ELEMENTS)


def _stage_3(num_parameters: int) -> dict[str, int]:
    """Return the limits of what passes through a rank at stage 3, in numbers of 4 bytes.

    DeepSpeed's defaults keep a billion gathered weights until the next step, so ranks hold the network
    whole, and flatten all gradients of a rank at once. A layer that is larger than a limit passes alone.
    Networks below 5 million parameters stay gathered from the forward to the backward pass.
    """
    passing = bucket_elements(3, num_parameters)
    return {
        "stage3_prefetch_bucket_size": passing,
        "stage3_max_live_parameters": passing,
        "stage3_max_reuse_distance": passing,
        "sub_group_size": passing,
        "stage3_param_persistence_threshold": 0,  # partition small parameters too
    }
