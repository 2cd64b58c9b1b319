"""The health of capsule layers: how many capsules live, how routing decides, what gradients arrive.

A layer takes part by a function for its class in `layer_state`, whatever network it is in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, singledispatch
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from capsdist.models.conv_capsules import ConvCapsules, SharedClassCapsules
from capsdist.models.inverted_layers import InvertedCapsules, InvertedLayer
from capsdist.models.later_layers import (
    AttentionCapsules,
    FullyConnectedCapsules,
    GroupedCapsules,
    HeinsenCapsules,
)
from capsdist.models.layers import ClassCapsules, PackedCapsules, PrimaryCapsules
from capsdist.models.matrix_layers import (
    MatrixCapsules,
    MatrixClassCapsules,
    MatrixConvCapsules,
    PrimaryMatrixCapsules,
)
from capsdist.ops import lengths
from capsdist.routing.dynamic.fields.call import FieldCall
from capsdist.routing.dynamic.fields.trace import trace_fields
from capsdist.routing.dynamic.trace import Trace, trace_routing
from capsdist.routing.em.trace import trace_em
from capsdist.routing.later.grouped import trace_grouped
from capsdist.routing.later.trace import LaterTrace, trace_attention, trace_heinsen, trace_inverted

__all__ = [
    "LIVE_LENGTH", "SATURATED_LENGTH", "LayerHealth", "LayerState", "Observed", "layer_state", "observed",
]  # fmt: skip

LIVE_LENGTH = 0.1
"""A capsule is live if it is longer than this in one image of a batch at least: the margin loss takes a class
below 0.1 as absent (paper, section 3), and capsules of most types and positions are absent most of the time.
"""
SATURATED_LENGTH = 0.95
"""A length above this is saturated: the slope of squash is below a thirtieth of its largest there."""


class LayerState(NamedTuple):
    """What a layer did with a batch.

    lengths [B, N]: of its capsules, one for each type and position; of matrix capsules their activations;
    None of capsules whose length says nothing.
    For layers that children are routed to, of the last iteration, else None: relative_entropy of the coupling
    of children, the mean over those that have a choice, 1 if they are undecided; largest_share of all
    children that one parent, or type of parents, has; logit_change: mean over children and parents of how far
    the iteration moves their logit, without its sign. In dynamic routing that is the agreement it ends with.
    Other algorithms make logits anew: it is how far they are from those before, what all parents of a child
    have in common left out; None where there are none before.
    num_choices: parents, or types of parents, that children choose from.
    num_decisions: how often votes decide the coupling: iterations but the first, which is uniform; 1 in
    self-attention.
    parts: states of capsule layers inside this one, by their names in it.
    """

    lengths: Tensor | None
    relative_entropy: float | None = None
    largest_share: float | None = None
    logit_change: float | None = None
    num_choices: int = 0
    num_decisions: int = 0
    parts: Mapping[str, LayerState] = MappingProxyType({})


@singledispatch
def layer_state(layer: nn.Module, child_poses: Any, output: Any) -> LayerState | None:
    """Return the state of a layer that made `output` of `child_poses`; None of modules without capsules.

    Register a function for a class of layers of your own: ``layer_state.register(MyCapsules)(function)``.
    """
    return None


@layer_state.register(PrimaryCapsules)
@layer_state.register(PackedCapsules)
@layer_state.register(FullyConnectedCapsules)
def _of_poses(layer: nn.Module, child_poses: Tensor, output: Tensor) -> LayerState:
    return LayerState(lengths(output).flatten(1))


@layer_state.register(InvertedLayer)
def _of_a_part(layer: InvertedLayer, *tensors: Tensor) -> None:
    """Return None: a call is one pass, and `InvertedCapsules` has the state after all of them."""


@layer_state.register
def _of_class_capsules(layer: ClassCapsules, child_poses: Tensor, output: Tensor) -> LayerState:
    routing = layer.routing
    trace = trace_routing(
        child_poses,
        layer.packed_weights,
        routing.iterations,
        bias=layer.bias,
        log_priors=layer.log_priors,
        none_of_the_above=routing.none_of_the_above,
    )
    return _of_dynamic(layer, output, trace)


@layer_state.register
def _of_grouped_capsules(layer: GroupedCapsules, child_poses: Tensor, output: Tensor) -> LayerState:
    operands = child_poses, layer.grouped_weights, layer.routing
    return _of_dynamic(layer, output, trace_grouped(*operands, bias=layer.bias, log_priors=layer.log_priors))


def _of_dynamic(layer: ClassCapsules | GroupedCapsules, output: Tensor, trace: Trace) -> LayerState:
    """Return the state of class capsules that children are routed to by dynamic routing."""
    largest = math.log(max(2, layer.num_parents + layer.routing.none_of_the_above))
    return LayerState(
        lengths(output).flatten(1),
        float(trace.coupling_entropy[-1].mean()) / largest,
        float(trace.parent_shares[-1].mean(0).max()),
        float(trace.logit_change[-1].mean()),
        layer.num_parents,
        layer.routing.iterations - 1,
    )


@layer_state.register
def _of_attention_capsules(layer: AttentionCapsules, child_poses: Tensor, output: Tensor) -> LayerState:
    return _of_later(lengths(output), trace_attention(child_poses, layer.packed_weights), num_decisions=1)


@layer_state.register
def _of_heinsen_capsules(layer: HeinsenCapsules, child_poses: Tensor, output: Tensor) -> LayerState:
    parameters = layer.packed_weights, layer.vote_bias, layer.beta_use, layer.beta_ignore
    return _of_later(lengths(output), trace_heinsen(child_poses, *parameters, layer.routing.iterations))


@layer_state.register
def _of_inverted_capsules(layer: InvertedCapsules, child_poses: Tensor, output: Tensor) -> LayerState:
    """Return the state of the class capsules; those below, whose LayerNorm fixes their length, are parts."""
    layers = zip(layer.inverted_layers, layer.passes(child_poses), strict=True)
    *parts, top = (_of_later(None, trace_inverted(passes, part.packed_weights)) for part, passes in layers)
    named = {f"layers.{number}": part for number, part in enumerate(parts)}
    return top._replace(lengths=lengths(output), parts=named)


def _of_later(sizes: Tensor | None, trace: LaterTrace, num_decisions: int | None = None) -> LayerState:
    """Return the state of class capsules of lengths `sizes`; num_decisions: None for passes but the first."""
    return LayerState(
        sizes,
        float(trace.relative_entropy[-1].mean()),
        float(trace.parent_shares[-1].mean(0).max()),
        float(trace.logit_change[-1].mean()) if len(trace.logit_change) else None,
        trace.parent_shares.shape[2],
        len(trace.logit_change) if num_decisions is None else num_decisions,
    )


@layer_state.register(ConvCapsules)
@layer_state.register(SharedClassCapsules)
def _of_fields(layer: ConvCapsules | SharedClassCapsules, child_poses: Tensor, output: Tensor) -> LayerState:
    call: FieldCall = layer.call(child_poses)
    trace = trace_fields(call)
    return LayerState(
        lengths(output).flatten(1),
        float(trace.relative_entropy[-1].mean()),
        float(trace.type_shares[-1].mean(0).max()),
        float(trace.logit_change[-1].mean()),
        call.packed_weights.shape[0],
        layer.routing.iterations - 1,
    )


@layer_state.register
def _of_activations(layer: PrimaryMatrixCapsules, features: Tensor, output: MatrixCapsules) -> LayerState:
    return LayerState(output.activations.flatten(1))


@layer_state.register(MatrixConvCapsules)
@layer_state.register(MatrixClassCapsules)
def _of_matrices(
    layer: MatrixConvCapsules | MatrixClassCapsules, children: MatrixCapsules, output: MatrixCapsules
) -> LayerState:
    trace = trace_em(layer.call(children))
    return LayerState(
        output.activations.flatten(1),
        float(trace.relative_entropy[-1].mean()),
        float(trace.type_shares[-1].mean(0).max()),
        float(trace.logit_change[-1].mean()) if len(trace.logit_change) else None,
        layer.types,
        layer.routing.iterations - 1,
    )


@dataclass(frozen=True)
class LayerHealth:
    """The health of one layer, by what a batch of a rank shows.

    Attributes:
        name: of the module in its network.
        num_capsules: N, or where lengths say nothing the parents that are chosen from.
        live_percent: of capsules, see `LIVE_LENGTH`.
        mean_length: over images and capsules.
        saturated_percent: of images and capsules, see `SATURATED_LENGTH`. All three are None where lengths
            say nothing.
        relative_entropy, largest_share, logit_change, num_choices, num_decisions: see `LayerState`.
        grad_norm: norm of the loss' gradient of all parameters of the layer; None without a backward pass.
        weight_norm: of these parameters.
    """

    name: str
    num_capsules: int
    live_percent: float | None
    mean_length: float | None
    saturated_percent: float | None
    relative_entropy: float | None
    largest_share: float | None
    logit_change: float | None
    num_choices: int
    num_decisions: int
    grad_norm: float | None
    weight_norm: float


@dataclass
class Observed:
    """What `observed` has seen; `report` says it."""

    layers: dict[str, nn.Module]
    states: dict[str, LayerState] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)

    def report(self) -> list[LayerHealth]:
        """Return the health of each capsule layer that ran, in the order of the forward pass."""
        return [self._health(name, state) for name, state in self.states.items()]

    def _health(self, name: str, state: LayerState) -> LayerHealth:
        layer = self.layers[name]
        sizes = None if state.lengths is None else state.lengths.detach().float()
        norms = [float(parameter.detach().float().norm()) for parameter in layer.parameters()]
        return LayerHealth(
            name=name,
            num_capsules=state.num_choices if sizes is None else sizes.shape[1],
            live_percent=None if sizes is None else _percent(sizes.amax(0) > LIVE_LENGTH),
            mean_length=None if sizes is None else float(sizes.mean()),
            saturated_percent=None if sizes is None else _percent(sizes > SATURATED_LENGTH),
            relative_entropy=state.relative_entropy,
            largest_share=state.largest_share,
            logit_change=state.logit_change,
            num_choices=state.num_choices,
            num_decisions=state.num_decisions,
            grad_norm=math.sqrt(self.squares[name]) if name in self.squares else None,
            weight_norm=math.hypot(*norms),
        )


def _percent(flags: Tensor) -> float:
    return 100 * float(flags.float().mean())


@contextmanager
def observed(network: nn.Module) -> Iterator[Observed]:
    """Watch the capsule layers of `network`: their first forward pass in this context, and its backward pass.

    Neither outputs nor gradients nor random generators change. Of further passes, as of microbatches, forward
    passes are not looked at; gradients are those of the first that arrive, of this rank before any exchange.

    Cost: a trace of routing for each layer, one to three forward passes of it, and waits for the device.
    """
    found = Observed(dict(network.named_modules()))
    handles: list[Any] = []

    def see(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if name in found.states:
            return
        with torch.no_grad():
            state = layer_state(layer, inputs[0], output)
        if state is not None:
            found.states |= {f"{name}.{part}": own for part, own in state.parts.items()}
            found.states[name] = state

    def add(name: str, seen: list[bool], gradient: Tensor) -> None:
        if not seen:
            seen.append(True)
            square = float(gradient.detach().double().square().sum())
            found.squares[name] = found.squares.get(name, 0.0) + square

    for name, layer in found.layers.items():
        if layer_state.dispatch(type(layer)) is layer_state.dispatch(object):
            continue
        handles.append(layer.register_forward_hook(partial(see, name)))
        handles += [
            parameter.register_hook(partial(add, name, []))
            for parameter in layer.parameters()
            if parameter.requires_grad
        ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
