"""Class capsules that are split over ranks beside DeepSpeed: their own optimizer, and the whole norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from capsdist.models.parallel.conversion import share_values
from capsdist.models.parallel.gradients import squared_norm
from capsdist.models.parallel.layer import layer_parameters
from capsdist.train.optim import StateForm, build_optimizer, create_state, trained_parameters

if TYPE_CHECKING:
    from capsdist.config.schema import Optim

__all__ = ["SplitCapsules"]


class SplitCapsules:
    """The parameters of `ParallelClassCapsules` in `model`, by name, and the optimizer that holds them.

    Replicas begin with the values of the first one. Collective.
    """

    def __init__(self, model: nn.Module, optim: Optim) -> None:
        share_values(model)
        trained = trained_parameters(model)
        self.parameters = {name: p for name, p in layer_parameters(model).items() if name in trained}
        self.optimizer = build_optimizer(model, optim, self.parameters)
        self._model, self._limit = model, optim.max_grad_norm
        for parameter in self.parameters.values():
            create_state(self.optimizer, parameter, StateForm.of(optim))

    def whole_norm(self, norm_of_others: Callable[[], Tensor]) -> Tensor:
        """Return the norm of all gradients, given how DeepSpeed finds that of its own. Collective."""
        norm = norm_of_others()
        return (norm.square() + squared_norm(self._model).to(norm)).sqrt()

    def step(self, norm: Tensor | None, *, skip: bool) -> None:
        """Clip by the `norm` of all gradients, unless None, and update; clear. skip: only clear."""
        if norm is not None and not skip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self._limit, norm)
        if not skip:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
