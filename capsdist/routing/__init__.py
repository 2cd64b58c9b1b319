"""Routing by agreement: one function in several forms."""

from capsdist.routing.dispatch import explain, route, route_packed
from capsdist.routing.forms import Explanation, Form, Recompute
from capsdist.routing.packing import pack_weights, unpack_weights
from capsdist.routing.reference import route_reference
from capsdist.routing.stream import Gradient
from capsdist.routing.trace import Trace, trace_routing

__all__ = [
    "Explanation",
    "Form",
    "Gradient",
    "Recompute",
    "Trace",
    "explain",
    "pack_weights",
    "route",
    "route_packed",
    "route_reference",
    "trace_routing",
    "unpack_weights",
]
