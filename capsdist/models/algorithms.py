"""The built-in routing algorithms of class capsules. torch is imported when a layer is built or explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from capsdist.algorithms import Algorithm
from capsdist.config.models import CapsuleConfig, Routing
from capsdist.config.schema import Config
from capsdist.errors import Problem
from capsdist.models import later_costs
from capsdist.models.routing_costs import routing_cost

if TYPE_CHECKING:
    from torch import nn

    from capsdist.config.cost import LayerCost, Routed
    from capsdist.routing import Explanation

__all__ = ["ATTENTION", "AVERAGE", "DYNAMIC", "FULLY_CONNECTED", "GROUPED", "HEINSEN", "INVERTED"]

_Layer = Callable[[int, int, int, int], "nn.Module"]
_DYNAMIC = frozenset({"none_of_the_above", "gradient", "recompute", "backend", "capsule_bias", "log_priors"})


def _explain_dynamic(*arguments: Any, **options: Any) -> Explanation:
    from capsdist.routing.dynamic.api import explain

    return explain(*arguments, **options)


def _explain_average(child_poses: Any, weights: Any, iterations: int = 1, **options: Any) -> Explanation:
    return _explain_dynamic(child_poses, weights, 1, **options)


def _explain_form(*arguments: Any, backend: str = "auto") -> Explanation:
    from capsdist.routing.later.forms import choose_form

    return choose_form(backend)


def _explain_linear(*arguments: Any) -> Explanation:
    from capsdist.routing import Explanation

    return Explanation("linear", {"linear": "taken: two matrix products; it has no votes and no other form"})


def _attention(model: CapsuleConfig, routing: Routing) -> _Layer:
    from capsdist.models.later_layers import AttentionCapsules

    return partial(AttentionCapsules, log_priors=model.log_priors, backend=routing.backend)


def _inverted(model: CapsuleConfig, routing: Routing) -> _Layer:
    from capsdist.models.later_layers import InvertedCapsules

    return partial(InvertedCapsules, iterations=routing.iterations, backend=routing.backend)


def _heinsen(model: CapsuleConfig, routing: Routing) -> _Layer:
    from capsdist.models.later_layers import HeinsenCapsules

    return partial(HeinsenCapsules, iterations=routing.iterations, backend=routing.backend)


def _grouped(model: CapsuleConfig, routing: Routing) -> _Layer:
    from capsdist.models.later_layers import GroupedCapsules

    options = routing.model_dump(exclude={"algorithm", "competition"})  # that is of grids
    return partial(GroupedCapsules, bias=model.capsule_bias, log_priors=model.log_priors, **options)


def _average(model: CapsuleConfig, routing: Routing) -> _Layer:
    from capsdist.models.layers import ClassCapsules

    return partial(ClassCapsules, iterations=1, bias=model.capsule_bias, backend=routing.backend)


def _fully_connected(model: CapsuleConfig, routing: Routing) -> _Layer:
    from capsdist.models.later_layers import FullyConnectedCapsules

    return FullyConnectedCapsules


def _dynamic_cost(name: str, model: CapsuleConfig, routing: Routing, sizes: Routed) -> LayerCost:
    return routing_cost(name, sizes, routing, bias=model.capsule_bias, log_priors=model.log_priors)


def _average_cost(name: str, model: CapsuleConfig, routing: Routing, sizes: Routed) -> LayerCost:
    from dataclasses import replace

    return routing_cost(name, replace(sizes, iterations=1), routing, bias=model.capsule_bias)


def _kernel_problems(config: Config) -> Iterator[Problem]:
    assert isinstance(config.routing, Routing)
    if config.routing.backend == "fused":
        name = config.routing.algorithm
        rule = f"has no kernels for routing.algorithm={name} yet"
        yield Problem("routing.backend", "fused", rule, "set --routing.backend auto")


def _group_problems(config: Config) -> Iterator[Problem]:
    assert isinstance(config.routing, Routing)
    groups, name = config.routing.groups, "primary_types"
    types = getattr(config.model, name, groups)
    if layers := getattr(config.model, "capsule_types", ()):  # the children of class capsules are the last
        name, types = "capsule_types", layers[-1]
    if groups >= 1 and types % groups:
        rule = f"does not divide the {types} capsule types of model.{name}"
        yield Problem("routing.groups", groups, rule, "set --routing.groups to a divisor")


DYNAMIC = Algorithm(
    title="dynamic routing",
    source="Sabour, Frosst, Hinton 2017, Procedure 1",
    reads=_DYNAMIC | {"iterations", "initialisation", "primary_coupling"},
    layer=None,
    explain=_explain_dynamic,
    cost=_dynamic_cost,
    whole="",
)
ATTENTION = Algorithm(
    title="self-attention routing",
    source="Mazzia, Salvetti, Chiaberge 2021, self-attention routing",
    reads=frozenset({"backend", "log_priors"}),
    layer=_attention,
    explain=_explain_form,
    cost=later_costs.attention_cost,
    problems=_kernel_problems,
)
INVERTED = Algorithm(
    title="inverted dot-product attention routing",
    source="Tsai, Srivastava, Goh, Salakhutdinov 2020, Procedure 1",
    reads=frozenset({"iterations", "backend"}),
    layer=_inverted,
    explain=_explain_form,
    cost=later_costs.inverted_cost,
    problems=_kernel_problems,
)
HEINSEN = Algorithm(
    title="Heinsen routing",
    source="Heinsen 2019, Algorithm 1",
    reads=frozenset({"iterations", "backend"}),
    layer=_heinsen,
    explain=_explain_form,
    cost=later_costs.heinsen_cost,
    problems=_kernel_problems,
)
GROUPED = Algorithm(
    title="grouped dynamic routing",
    source="Yuan, Ren 2025 (DC-CapsNet)",
    reads=_DYNAMIC | {"iterations", "groups"},
    layer=_grouped,
    explain=_explain_dynamic,
    cost=later_costs.grouped_cost,
    problems=_group_problems,
)
AVERAGE = Algorithm(
    title="uniform coupling",
    source="control: dynamic routing of one iteration",
    reads=frozenset({"backend", "capsule_bias"}),
    layer=_average,
    explain=_explain_average,
    cost=_average_cost,
    whole="",
)
FULLY_CONNECTED = Algorithm(
    title="fully connected layers",
    source="control: as many parameters without capsules",
    reads=frozenset(),
    layer=_fully_connected,
    explain=_explain_linear,
    cost=later_costs.fully_connected_cost,
)
