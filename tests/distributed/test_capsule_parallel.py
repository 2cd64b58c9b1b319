"""Children split over ranks: the parents and ALL gradients, stem included, are those of a single rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from capsule_runs import (
    CHILD_DIM,
    GATHER,
    PARENT_DIM,
    PARENTS,
    Setup,
    count_collectives,
    drawn_weights,
    refusal,
    run_empty,
    run_single,
    run_split,
    run_split_with_dv_reduced,
)
from torch import Tensor

Found = dict[str, Tensor]
WEIGHTS, PRIORS = "1.packed_weights", "1.log_priors"


def joined(results: list[Found], num_replicas: int = 1) -> Found:
    """What all ranks found, put together as on one rank; what they share must be equal."""
    first = results[0]
    for each in results[1:]:
        for name in each.keys() - {"parent_poses", WEIGHTS, PRIORS}:
            torch.testing.assert_close(each[name], first[name], atol=1e-12, rtol=0)
    split = len(results) // num_replicas
    for replica in range(1, num_replicas):
        for own, same in zip(results[:split], results[replica * split :], strict=False):
            torch.testing.assert_close(own[WEIGHTS], same[WEIGHTS])
    found = {**first, "parent_poses": torch.cat([each["parent_poses"] for each in results])}
    found[WEIGHTS] = torch.cat([each[WEIGHTS] for each in results[:split]], dim=3)
    if PRIORS in first:
        found[PRIORS] = torch.cat([each[PRIORS] for each in results[:split]])
    return found


def error(found: Found, expected: Found) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[n] - e).abs().max() / e.abs().max()) for n, e in expected.items())


SETUPS = [
    pytest.param(Setup(), id="paper"),
    pytest.param(Setup(iterations=1, bias=False), id="one-iteration"),
    pytest.param(Setup(log_priors=True, none_of_the_above=True, iterations=2), id="priors"),
    pytest.param(Setup(gradient="last", log_priors=True), id="last"),
    pytest.param(Setup(num_images=8, iterations=5), id="five-iterations"),
]


@pytest.mark.property("parallel", "children split over ranks give the parents and all gradients of one rank")
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("setup", SETUPS)
def test_parents_and_all_gradients_are_those_of_one_rank(ranks, world_size: int, setup: Setup) -> None:
    setup = replace(setup, seed=world_size)
    found = joined(ranks(world_size).run(run_split, setup))
    assert error(found, run_single(setup)) < 1e-10


@pytest.mark.defect("parallel", "the carried gradient summed over ranks")
def test_all_reducing_dv_itself_breaks_it(ranks) -> None:
    setup = Setup(seed=1)
    found = joined(ranks(2).run(run_split_with_dv_reduced, setup))
    expected = run_single(setup)
    torch.testing.assert_close(
        found["parent_poses"], expected["parent_poses"]
    )  # nothing shows in the results
    assert error(found, expected) > 0.01


def test_children_that_ranks_cannot_share_evenly(ranks) -> None:
    setup = Setup(types=7, seed=2)  # 28 children on 3 ranks: 9, 9 and 10
    results = ranks(3).run(run_split, replace(setup, num_images=6))
    assert [each[WEIGHTS].shape[3] for each in results] == [9, 9, 10]
    assert error(joined(results), run_single(replace(setup, num_images=6))) < 1e-10


@pytest.mark.property("parallel")
def test_a_mesh_of_replicas_and_children(ranks) -> None:
    setup = Setup(num_images=8, log_priors=True, seed=3)
    results = ranks(4).run(run_split, setup, 2)
    assert [each[WEIGHTS].shape[3] for each in results] == [6, 6, 6, 6]
    assert error(joined(results, num_replicas=2), run_single(setup)) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(ranks, dtype: torch.dtype) -> None:
    setup = Setup(dtype=dtype, seed=4)
    found = joined(ranks(2).run(run_split, setup))
    exact = run_single(setup)
    assert found["parent_poses"].dtype == dtype
    assert error(found, exact) < (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.property("traffic", "ranks exchange poses and one sum per iteration, never weights")
def test_one_all_reduce_an_iteration_and_no_weights_travel(ranks) -> None:
    setup = Setup(iterations=4)
    parents = setup.num_images * PARENTS * PARENT_DIM
    poses = setup.num_images * setup.num_children * CHILD_DIM // 2  # a rank's share, in both directions
    for calls in ranks(2).run(count_collectives, setup):
        assert calls == {
            "all_to_all_single": [poses, poses],
            "all_reduce": [parents] * (4 + 3),
            GATHER: [parents],
        }


def test_ranks_draw_different_children_and_stay_in_step(ranks) -> None:
    (first, after), (second, after_second) = ranks(2).run(drawn_weights, 9)
    assert first.shape == (PARENTS, PARENT_DIM, CHILD_DIM, 4)
    assert second.shape == (PARENTS, PARENT_DIM, CHILD_DIM, 5)
    assert not torch.equal(first, second[..., :4])
    assert after == after_second
    assert first.std().item() == pytest.approx(0.4 * PARENTS / (9 * PARENT_DIM) ** 0.5, rel=0.2)


@pytest.mark.parametrize(
    ("num_children", "num_own", "message"),
    [
        (1, 1, "1 children cannot be split over 2 ranks; use at most 1"),
        (8, 3, "packed_weights has 3 children; rank {0} of 2 owns 4 of 8: pass those from {1} on"),
    ],
)
def test_refusals_name_value_and_remedy(ranks, num_children: int, num_own: int, message: str) -> None:
    expected = [message.format(rank, 4 * rank) for rank in range(2)]
    assert ranks(2).run(refusal, num_children, num_own) == expected


def test_no_images_are_exchanged_as_well(ranks) -> None:
    assert ranks(2).run(run_empty) == [[0, 7, CHILD_DIM]] * 2
