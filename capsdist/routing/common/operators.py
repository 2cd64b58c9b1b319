"""Give a pass with an own backward pass to autograd and to compilers.

Compilers and `torch.export` see two operators of `torch.library`, one each way. Everything else takes
autograd Functions: an operator costs some microseconds more, and torch.func refuses its gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from capsdist.routing.common.autograd import BackwardPass, Pass, way

__all__ = ["Signature", "own_backward"]

_Run = Callable[..., Any]


@dataclass(frozen=True)
class Signature:
    """What a pass and its backward pass take and return.

    operands: names of the tensors that are differentiated; one that ends in `?` may be None.
    others: the further arguments, in torch's schema language.
    num_results, num_kept: tensors that the pass returns, and that it returns to be kept for the way back.
    transposed: operands whose gradient is returned with the last two dimensions exchanged.
    on_demand: operands whose gradient is computed only if it is wanted.
    """

    operands: tuple[str, ...]
    others: str = ""
    num_results: int = 1
    num_kept: int = 0
    transposed: tuple[str, ...] = ()
    on_demand: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the operands, without `?`."""
        return [each.rstrip("?") for each in self.operands]

    def schemas(self) -> tuple[str, str]:
        """Return the schemas of the operators, in torch's language: forward and backward."""
        num_given = self.num_results + self.num_kept
        own = [f"Tensor{'?' * each.endswith('?')} {each.rstrip('?')}" for each in self.operands]
        own += [self.others] * bool(self.others)
        given = [f"Tensor given_{number}" for number in range(num_given)]
        wants = [f"bool want_{each}" for each in self.on_demand]
        found, gradients = (", ".join(["Tensor"] * number) for number in (num_given, len(self.operands)))
        return f"({', '.join(own)}) -> ({found})", f"({', '.join(given + own + wants)}) -> ({gradients})"

    def like_operands(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Return memory for the gradients; `arguments` are those of the backward pass."""
        own = arguments[self.num_results + self.num_kept :][: len(self.operands)]
        wanted = dict(zip(reversed(self.on_demand), reversed(arguments), strict=False))
        found: list[Tensor] = []
        for name, each in zip(self.names, own, strict=True):
            if each is None or not wanted.get(name, True):
                found.append(own[0].new_empty(0))
            else:
                found.append(each.new_empty((each.mT if name in self.transposed else each).shape))
        return tuple(found)

    def keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save the operands themselves, no copy of them, and what the pass returned for it."""
        kept = output[self.num_results :] if self.num_kept else ()
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(self.num_results > 1)  # zeros for what is kept would take memory
        ctx.others = inputs[len(self.operands) :]
        ctx.save_for_backward(*inputs[: len(self.operands)], *kept)

    def differentiate(self, run: _Run, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return a gradient for each argument of the pass, by `run` of the backward pass."""
        wanted = dict(zip(self.names, ctx.needs_input_grad, strict=False))
        none = (None,) * len(ctx.others)
        if grads[0] is None:
            return *(None for _ in wanted), *none
        saved, number = ctx.saved_tensors, len(self.operands)
        wants = (wanted[each] for each in self.on_demand)
        results = run(*grads[: self.num_results], *saved[number:], *saved[:number], *ctx.others, *wants)
        found: list[Tensor | None] = []
        for name, grad in zip(self.names, results, strict=True):
            own = grad.mT if wanted[name] and name in self.transposed else grad
            found.append(own if wanted[name] else None)
        return *found, *none


def own_backward(
    name: str,
    forward: _Run,
    backward: _Run,
    empty: _Run,
    refuse: Callable[..., NoReturn],
    signature: Signature,
    *,
    function: type[Pass] | None = Pass,
) -> _Run:
    """Return what runs `forward` such that it is differentiated by `backward`, also in compiled programs.

    Args:
        name: of the operator, `capsdist::NAME`; the other one is `capsdist::NAME_backward`.
        forward: takes the operands, then the others; returns results, then what is kept for the way back: a
            tuple, or one tensor alone.
        backward: takes the gradients of the results, what is kept, operands, others, and a bool for each of
            `on_demand`; returns a gradient for each operand, contiguous and in its shape and dtype: of one
            that is None or not wanted an empty tensor in the dtype of the first.
        empty: takes what forward takes; returns tensors such as forward returns, contents undefined.
        refuse: what second derivatives and forward mode do.
        signature: names and numbers of all these.
        function: the base of the autograd Function, which has a `vmap`; None takes the operators everywhere,
            so that FlopCounterMode counts by their formulas.
    """
    schemas = zip((name, f"{name}_backward"), (forward, backward), signature.schemas(), strict=True)
    operator, backward_operator = (
        torch.library.custom_op(f"capsdist::{name}", run, mutates_args=(), schema=schema)
        for name, run, schema in schemas
    )
    keep, differentiate = signature.keep, signature.differentiate
    operator.register_fake(empty)
    backward_operator.register_fake(signature.like_operands)
    operator.register_autograd(
        lambda ctx, *grads: differentiate(backward_operator, ctx, *grads), setup_context=keep
    )
    backward_operator.register_autograd(refuse)
    if function is None:
        return operator

    class Forward(function):
        jvp = staticmethod(refuse)
        setup_context = staticmethod(keep)

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return forward(*arguments)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            return differentiate(way(Backward, backward), ctx, *grads)

    class Backward(BackwardPass):
        backward = jvp = staticmethod(refuse)

        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, ...]:
            return backward(*arguments)

    def run(*arguments: Any) -> Any:
        return (operator if torch.compiler.is_compiling() else way(Forward, forward))(*arguments)

    return run
