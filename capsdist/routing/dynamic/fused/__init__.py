"""The fused backend: routing by Triton kernels, votes in registers only. Importing it needs torch alone."""

from capsdist.routing.dynamic.fused.operators import route_fused
from capsdist.routing.dynamic.fused.refusal import fused_refusal

__all__ = ["fused_refusal", "route_fused"]
