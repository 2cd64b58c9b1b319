"""Give a pass with an own backward pass to autograd and to compilers.

Compilers and `torch.export` see two operators of `torch.library`, one each way. Everything else takes
autograd Functions: an operator costs some microseconds more, and torch.func refuses its gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from capsdist.routing.common.autograd import BackwardPass, Pass, way

__all__ = ["own_backward"]

_Run = Callable[..., tuple[Tensor, ...]]


def own_backward(
    name: str,
    forward: _Run,
    backward: _Run,
    empty: _Run,
    refuse: Callable[..., NoReturn],
    *,
    operands: tuple[str, ...],
    others: str,
    num_results: int,
    num_kept: int,
) -> _Run:
    """Return what runs `forward` such that it is differentiated by `backward`, also in compiled programs.

    Args:
        name: of the operator, `capsdist::NAME`; the other one is `capsdist::NAME_backward`.
        forward: takes the operands, then the others; returns results, then what is kept for the way back.
        backward: takes the gradients of the results, what is kept, operands and others; returns a gradient
            for each operand, contiguous and in its shape and dtype: of one that is None an empty tensor.
        empty: takes what forward takes; returns tensors such as forward returns, contents undefined.
        refuse: what second derivatives and forward mode do.
        operands: names of the tensors that are differentiated; one that ends in `?` may be None.
        others: the further arguments, in torch's schema language.
        num_results, num_kept: tensors that forward returns.
    """
    num_operands = len(operands)
    tensors = ", ".join(f"Tensor{'?' * each.endswith('?')} {each.rstrip('?')}" for each in operands)
    found = ", ".join(["Tensor"] * (num_results + num_kept))
    given = ", ".join(f"Tensor given_{number}" for number in range(num_results + num_kept))
    gradients = ", ".join(["Tensor"] * num_operands)
    operator, backward_operator = (
        torch.library.custom_op(f"capsdist::{name}", run, mutates_args=(), schema=schema)
        for name, run, schema in (
            (name, forward, f"({tensors}, {others}) -> ({found})"),
            (f"{name}_backward", backward, f"({given}, {tensors}, {others}) -> ({gradients})"),
        )
    )

    def like_operands(*arguments: Any) -> tuple[Tensor, ...]:
        own = arguments[num_results + num_kept :][:num_operands]
        return tuple(own[0].new_empty(0) if each is None else each.new_empty(each.shape) for each in own)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[num_results:])
        ctx.others = inputs[num_operands:]
        ctx.save_for_backward(*inputs[:num_operands], *output[num_results:])

    def differentiate(run: _Run, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        kept, own = saved[num_operands:], saved[:num_operands]
        results = run(*grads[:num_results], *kept, *own, *ctx.others)
        wanted = zip(results, ctx.needs_input_grad, strict=False)
        return *(grad if want else None for grad, want in wanted), *(None for _ in ctx.others)

    class Forward(Pass):
        jvp = staticmethod(refuse)
        setup_context = staticmethod(keep)

        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, ...]:
            return forward(*arguments)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            return differentiate(way(Backward, backward), ctx, *grads)

    class Backward(BackwardPass):
        backward = jvp = staticmethod(refuse)

        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, ...]:
            return backward(*arguments)

    operator.register_fake(empty)
    backward_operator.register_fake(like_operands)
    operator.register_autograd(
        lambda ctx, *grads: differentiate(backward_operator, ctx, *grads), setup_context=keep
    )
    backward_operator.register_autograd(refuse)

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        return (operator if torch.compiler.is_compiling() else way(Forward, forward))(*arguments)

    return run
