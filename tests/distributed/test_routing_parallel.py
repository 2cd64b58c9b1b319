"""Children split over ranks as compilers, torch.func and a second backward pass see them."""

from __future__ import annotations

import pytest
import torch
from capsule_runs import Setup, run_compiled, run_penalty, run_torch_func


def test_a_step_with_split_children_compiles_whole(ranks) -> None:
    for eager, compiled in ranks(2).run(run_compiled, Setup(log_priors=True, seed=5)):
        assert eager.keys() == compiled.keys()
        for name, expected in eager.items():
            torch.testing.assert_close(compiled[name], expected)


@pytest.mark.property("derivatives")
@pytest.mark.parametrize("squared", [False, True])  # whether the gradient that is exchanged depends on poses
def test_a_penalty_on_the_gradient_is_refused(ranks, squared: bool) -> None:
    for said in ranks(2).run(run_penalty, Setup(), squared, False):
        assert said == (
            "streamed routing is differentiable once, backward; for other derivatives choose "
            "backend='reference', with no children split over ranks"
        )


@pytest.mark.defect("derivatives", "an exchange of gradients that cuts their graph")
def test_an_exchange_that_cuts_the_graph_takes_it_for_a_constant(ranks) -> None:
    assert ranks(2).run(run_penalty, Setup(), False, True) == ["", ""]


def test_gradients_by_torch_func(ranks) -> None:
    for found in ranks(2).run(run_torch_func, Setup(log_priors=True)):
        for one, other in found:
            torch.testing.assert_close(one, other)
