"""What class capsules of the later routing algorithms cost, by closed formulas.

A product has 2 I J D E FLOP. The pass of a given state (`sum_coupled`) has 2 forward, and 5 backward, of
which 1 repeats the forward pass; a sum of all votes has 1 and 2.

Shape letters: I children, J parents, D child dimension, E parent dimension, G groups.
"""

from __future__ import annotations

from dataclasses import replace

from capsdist.config.cost import Bytes, LayerCost, Numbers, Routed
from capsdist.config.models import CapsuleConfig, Routing
from capsdist.models.routing_costs import routing_cost
from capsdist.models.units import hidden_units, passes_of

__all__ = ["attention_cost", "fully_connected_cost", "grouped_cost", "heinsen_cost", "inverted_cost"]

_FP32 = 4
_SCRATCH = 32 << 20  # bytes of the buffers of streamed passes, at most
_VOTES_KEPT = 3  # tensors of the size of the votes that autograd keeps a pass of a reference


def attention_cost(name: str, model: CapsuleConfig, routing: Routing, sizes: Routed) -> LayerCost:
    """Return the cost of `AttentionCapsules`."""
    priors = int(model.log_priors)
    more = priors * sizes.children * sizes.parents
    products = 3 + priors, 6 + 2 * priors, 1
    kept = 2 * sizes.parents * sizes.parent_dim + 5 * sizes.parents + sizes.parents // 4
    return _layer(name, routing, sizes, products, parameters=more, kept=kept, passes=1)


def inverted_cost(name: str, model: CapsuleConfig, routing: Routing, sizes: Routed) -> LayerCost:
    """Return the cost of `InvertedCapsules`: layers with 2 E of a LayerNorm, and a read-out of E + 1."""
    dim, counts = sizes.parent_dim, (*routing.hidden_capsules, sizes.parents)
    below = [(sizes.children, sizes.child_dim), *((number, dim) for number in counts)]
    passes = passes_of(routing.iterations, len(counts), concurrent=routing.concurrent)
    layers = [
        _inverted_layer(name, routing, Routed(*children, parents, dim, rounds))
        for children, parents, rounds in zip(below, counts, passes, strict=False)
    ]
    read_out = sizes.parents * dim + 3 * sizes.parents + sizes.parents // 4
    return replace(
        layers[-1],
        parameters=sum(layer.parameters for layer in layers) + dim + 1,
        forward_flop=sum(layer.forward_flop for layer in layers),
        backward_flop=sum(layer.backward_flop for layer in layers),
        recomputed_flop=sum(layer.recomputed_flop for layer in layers),
        saved=Numbers(wide=sum(layer.saved.wide for layer in layers) + read_out),
        forward_peaks=tuple(peak for layer in layers for peak in layer.forward_peaks),
        backward_peaks=tuple(peak for layer in layers for peak in layer.backward_peaks),
    )


def _inverted_layer(name: str, routing: Routing, sizes: Routed) -> LayerCost:
    rounds, parents = sizes.iterations, sizes.parents
    coupled = rounds - 1
    products = 1 + 2 * coupled, 2 + 4 * coupled, coupled
    kept = 2 * rounds * parents * sizes.parent_dim + 2 * rounds * parents
    return _layer(name, routing, sizes, products, parameters=2 * sizes.parent_dim, kept=kept, passes=rounds)


def heinsen_cost(name: str, model: CapsuleConfig, routing: Routing, sizes: Routed) -> LayerCost:
    """Return the cost of `HeinsenCapsules`: all votes once an iteration, and a sum of them for the centre."""
    rounds = routing.iterations
    more = sizes.children * sizes.parents * (sizes.parent_dim + 2)
    kept = (10 * rounds - 5) * sizes.parents * sizes.parent_dim + 6 * rounds * sizes.parents + sizes.children
    products = rounds + 1, 2 * rounds, rounds
    layer = _layer(name, routing, sizes, products, parameters=more, kept=kept, passes=rounds)
    bias = 2 * sizes.children * sizes.parents * sizes.parent_dim  # of the centre
    return replace(layer, forward_flop=layer.forward_flop + bias)


def grouped_cost(name: str, model: CapsuleConfig, routing: Routing, sizes: Routed) -> LayerCost:
    """Return the cost of `GroupedCapsules`: that of a group, G times, with the same bias for all."""
    groups = routing.groups
    part = replace(sizes, children=sizes.children // groups)
    one = routing_cost(name, part, routing, bias=model.capsule_bias, log_priors=model.log_priors)
    shared = (groups - 1) * model.capsule_bias * sizes.parents * sizes.parent_dim
    return replace(
        one,
        parameters=groups * one.parameters - shared,
        forward_flop=groups * one.forward_flop,
        backward_flop=groups * one.backward_flop,
        recomputed_flop=groups * one.recomputed_flop,
        saved=Numbers(groups * one.saved.narrow, groups * one.saved.wide),
        routed=None,
    )


def fully_connected_cost(name: str, model: CapsuleConfig, routing: Routing, sizes: Routed) -> LayerCost:
    """Return the cost of `FullyConnectedCapsules`, which keeps its input, hidden units and totals."""
    inputs, outputs = sizes.children * sizes.child_dim, sizes.parents * sizes.parent_dim
    units = hidden_units(sizes.children, sizes.child_dim, sizes.parents, sizes.parent_dim)
    weights = units * (inputs + outputs)
    gradients = Bytes(_FP32 * (inputs + units + 2 * outputs), _FP32 * weights)
    return LayerCost(
        name,
        parameters=weights + units + outputs,
        forward_flop=2 * weights,
        backward_flop=4 * weights,
        saved=Numbers(narrow=inputs + units, wide=outputs + 4 * sizes.parents),
        forward_peaks=(Bytes(_FP32 * (inputs + units)),),
        backward_peaks=(gradients,),
        cast=weights,
    )


def _layer(
    name: str,
    routing: Routing,
    sizes: Routed,
    products: tuple[int, int, int],
    *,
    parameters: int,
    kept: int,
    passes: int,
) -> LayerCost:
    """Return the cost of a layer with one matrix per child and parent, and some more `parameters`.

    products: forward, backward, and done again, as `streamed` does them. kept: numbers that autograd keeps of
    it, besides its input. passes: of the votes.
    """
    poses, parents = sizes.children * sizes.child_dim, sizes.parents * sizes.parent_dim
    weights, votes = poses * parents, sizes.children * parents
    forward, backward, again = (2 * weights * number for number in products)
    reference = routing.backend == "reference"
    kept = _VOTES_KEPT * passes * votes if reference else kept
    peak = Bytes(_FP32 * votes) if reference else Bytes(_FP32 * 2 * parents, _SCRATCH)
    return LayerCost(
        name,
        parameters=weights + parameters,
        forward_flop=forward,
        backward_flop=backward,
        recomputed_flop=0 if reference else again,
        saved=Numbers(wide=poses + kept),  # it computes in fp32
        forward_peaks=(peak,),
        backward_peaks=(Bytes(peak.image + _FP32 * poses, peak.fixed + _FP32 * weights),),
    )
