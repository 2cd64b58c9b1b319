"""Routing by agreement: one function, several forms with the same numbers."""

from capsdist.routing.dispatch import Form, choose_form, route, route_packed
from capsdist.routing.packing import pack_weights, unpack_weights
from capsdist.routing.reference import route_reference
from capsdist.routing.streamed import route_streamed

__all__ = [
    "Form",
    "choose_form",
    "pack_weights",
    "route",
    "route_packed",
    "route_reference",
    "route_streamed",
    "unpack_weights",
]
