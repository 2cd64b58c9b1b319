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
_OF_MODEL = ("capsule_bias", "log_priors")
_OF_DYNAMIC = (*_OF_MODEL, "iterations", "none_of_the_above", "gradient", "recompute", "backend")


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


def _algorithm(layer: str, *reads: str, fixed: dict[str, Any] | None = None, **fields: Any) -> Algorithm:
    """Return an algorithm whose layer, a class of `capsdist.models`, takes the options that are read."""

    def make(model: CapsuleConfig, routing: Routing) -> _Layer:
        from capsdist import models

        options = {
            name.removeprefix("capsule_"): getattr(model if name in _OF_MODEL else routing, name)
            for name in reads
        }
        return partial(getattr(models, layer), **options, **(fixed or {}))

    return Algorithm(reads=frozenset(reads), layer=make, **fields)


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


def _inverted_problems(config: Config) -> Iterator[Problem]:
    yield from _kernel_problems(config)
    assert isinstance(config.routing, Routing)
    if config.routing.concurrent and not config.routing.hidden_capsules:
        rule = "is for several capsule layers, and routing.hidden_capsules is empty"
        yield Problem("routing.concurrent", True, rule, "set --routing.hidden-capsules 16, say")


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
    source="Sara Sabour, Nicholas Frosst, Geoffrey E. Hinton: "
    "[Dynamic Routing Between Capsules](https://arxiv.org/abs/1710.09829), 2017",
    reads=frozenset({*_OF_DYNAMIC, "initialisation", "primary_coupling"}),
    layer=None,
    explain=_explain_dynamic,
    cost=_dynamic_cost,
    whole="",
)
ATTENTION = _algorithm(
    "AttentionCapsules",
    "backend",
    "log_priors",
    title="self-attention routing",
    source="Vittorio Mazzia, Francesco Salvetti, Marcello Chiaberge: "
    "[Efficient-CapsNet: Capsule Network with Self-Attention Routing](https://arxiv.org/abs/2101.12491), "
    "2021",
    explain=_explain_form,
    cost=later_costs.attention_cost,
    problems=_kernel_problems,
)
INVERTED = _algorithm(
    "InvertedCapsules",
    "iterations",
    "hidden_capsules",
    "concurrent",
    "backend",
    title="inverted dot-product attention routing",
    source="Yao-Hung Hubert Tsai, Nitish Srivastava, Hanlin Goh, Ruslan Salakhutdinov: "
    "[Capsules with Inverted Dot-Product Attention Routing](https://arxiv.org/abs/2002.04764), 2020",
    explain=_explain_form,
    cost=later_costs.inverted_cost,
    problems=_inverted_problems,
)
HEINSEN = _algorithm(
    "HeinsenCapsules",
    "iterations",
    "backend",
    title="Heinsen routing",
    source="Franz A. Heinsen: "
    "[An Algorithm for Routing Capsules in All Domains](https://arxiv.org/abs/1911.00792), 2019",
    explain=_explain_form,
    cost=later_costs.heinsen_cost,
    problems=_kernel_problems,
)
GROUPED = _algorithm(
    "GroupedCapsules",
    *_OF_DYNAMIC,
    "groups",
    title="grouped dynamic routing",
    source="Hailei Yuan, Qiang Ren: [Divide-and-conquer routing for learning heterogeneous individualized "
    "capsules](https://doi.org/10.1371/journal.pone.0329202), 2025",
    explain=_explain_dynamic,
    cost=later_costs.grouped_cost,
    problems=_group_problems,
)
AVERAGE = _algorithm(
    "ClassCapsules",
    "backend",
    "capsule_bias",
    fixed={"iterations": 1},
    title="uniform coupling, a control: dynamic routing of one iteration",
    source="",
    explain=_explain_average,
    cost=_average_cost,
    whole="",
)
FULLY_CONNECTED = _algorithm(
    "FullyConnectedCapsules",
    title="fully connected layers, a control: as many parameters without capsules",
    source="",
    explain=_explain_linear,
    cost=later_costs.fully_connected_cost,
)
