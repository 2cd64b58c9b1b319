"""Routing algorithms of class capsules: what describes one, the built-in names, and how one is found.

`routing.algorithm` names one: a built-in name, or the import path package.module:OBJECT of an `Algorithm`,
so that a new one is one file. It stands below configuration, routing and networks, which all look it up here,
and imports none of them; nor torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from capsdist.errors import Problem
from capsdist.importing import find

__all__ = ["BUILT_IN", "Algorithm", "find_algorithm", "unread"]

BUILT_IN = {
    name: f"capsdist.models.algorithms:{name.upper()}"
    for name in ("dynamic", "attention", "inverted", "heinsen", "grouped", "average", "fully_connected")
}
"""Import paths of the algorithms that have a name."""

_OF_MODEL = ("capsule_bias", "log_priors", "initialisation", "primary_coupling")
_SKIPPED = ("algorithm",)


@dataclass(frozen=True)
class Algorithm:
    """A routing algorithm for class capsules, child_poses [B, I, D] -> parent_poses [B, J, E].

    Attributes:
        title: what people call it.
        source: who published it, as of a `capsdist.config.Family`; "": nobody, as of a control.
        reads: the options that it reads: fields of the section `routing`, and `capsule_bias`, `log_priors`,
            `initialisation` and `primary_coupling` of `model`. Another value than the default of any other
            one is refused.
        layer: ``layer(model, routing)`` returns a function that makes the layer, a torch module, of I, D, J
            and E. The length of a parent is the score of its class, in [0, 1). None: `ClassCapsules`.
        explain: ``explain(child_poses, weights, iterations, **options)`` returns which form a call takes, a
            `capsdist.routing.Explanation`; weights [I, J, D, E].
        cost: ``cost(name, model, routing, sizes)`` returns the `LayerCost` of the layer, for `capsdist plan`;
            sizes: a `Routed`. None: a network with it cannot be priced.
        whole: why its children cannot be split over ranks; "" if they can.
        problems: ``problems(config)`` returns what types and ranges of single fields cannot say.
    """

    title: str
    source: str
    reads: frozenset[str]
    layer: Callable[[Any, Any], Callable[[int, int, int, int], Any]] | None
    explain: Callable[..., Any]
    cost: Callable[[str, Any, Any, Any], Any] | None = None
    whole: str = "its class capsules compute on one rank"
    problems: Callable[[Any], Iterable[Problem]] = lambda config: ()


@functools.cache
def find_algorithm(name: str) -> Algorithm:
    """Return the algorithm that `name` means.

    Raises:
        ConfigError: it is no built-in name and no import path of an `Algorithm`.
    """
    return find(name, BUILT_IN, Algorithm, field="routing.algorithm", thing="a routing algorithm")


def unread(algorithm: Algorithm, model: Any, routing: Any) -> Iterator[tuple[str, object]]:
    """Yield (dotted field, value) of what `algorithm` does not read and is not at its default."""
    own = [("routing", routing, name) for name in type(routing).model_fields if name not in _SKIPPED]
    own += [("model", model, name) for name in _OF_MODEL if name in type(model).model_fields]
    for prefix, section, name in own:
        value = getattr(section, name)
        if name not in algorithm.reads and value != type(section).model_fields[name].default:
            yield f"{prefix}.{name}", value
