"""Routing by agreement: one function in several backends."""

from capsdist.routing.common.explanation import Explanation
from capsdist.routing.dynamic.api import route, route_packed
from capsdist.routing.dynamic.options import Backend, Gradient, Recompute, RoutingKeywords, RoutingOptions
from capsdist.routing.dynamic.packing import pack_weights, unpack_weights
from capsdist.routing.dynamic.reference import couple, logits_reference, route_reference
from capsdist.routing.dynamic.trace import Trace, trace_routing
from capsdist.routing.explaining import explain

__all__ = [
    "Backend", "Explanation", "Gradient", "Recompute", "RoutingKeywords", "RoutingOptions", "Trace",
    "couple", "explain", "logits_reference", "pack_weights", "route", "route_packed", "route_reference",
    "trace_routing", "unpack_weights",
]  # fmt: skip
