"""From a whole network to ranks that share it, from P ranks to Q, and back: no bit is lost."""

from __future__ import annotations

import pytest
import torch
from capsule_network import (
    CLASSES,
    FORM,
    Trained,
    adam,
    capsnet,
    gather_back,
    gather_traffic,
    initialise_on_meta,
    load_and_gather,
    properties,
    refusal,
    shared_layer,
    split_on_meta,
    train_alone,
    train_split,
)
from small_run import same_bits
from test_capsule_parallel_training import distance

from capsdist.train.checkpoint import EngineState
from capsdist.train.engine.replicated import load_replicated, replicated_state

FIRST, REST, FREE, FP64 = range(3), range(3, 6), 1e9, torch.float64


@pytest.fixture(scope="module")
def alone() -> tuple[Trained, Trained]:
    """The network trained in one process, after three steps and after six."""
    return train_alone(FIRST), train_alone(range(6))


@pytest.mark.property(
    "parallel states", "a state goes to any number of ranks that share children and back, bit for bit"
)
@pytest.mark.parametrize(("world_size", "num_replicas"), [(2, 1), (3, 1), (4, 2)])
def test_what_is_split_and_gathered_is_what_was(ranks, world_size: int, num_replicas: int) -> None:
    found = ranks(world_size).run(gather_back, num_replicas)
    first = [rank % (world_size // num_replicas) == 0 for rank in range(world_size)]
    assert [same_bits(each, capsnet().state_dict()) for each in found] == first
    assert all(each == {} for each, receives in zip(found, first, strict=True) if not receives)


@pytest.mark.property("parallel states")
@pytest.mark.parametrize("world_size", [2, 4])
def test_checkpoints_with_adams_state_go_to_ranks_and_back(ranks, alone, world_size: int) -> None:
    network = capsnet()
    optimizer = adam(network)
    network.load_state_dict(alone[0].model)
    optimizer.load_state_dict(alone[0].optimizer)
    state = EngineState(*replicated_state(network, optimizer, FORM))
    found = ranks(world_size).run(load_and_gather, state)
    assert same_bits(found[0][0].model, state.model)
    assert same_bits(found[0][0].optimizer, state.optimizer)
    assert sum(shape[0] for _, shape in found) == 27
    load_replicated(found[0][0], network, optimizer, FORM)  # and into the whole network again


def test_slices_travel_to_the_first_rank_alone_and_one_by_one(ranks) -> None:
    slices = [[num_own * CLASSES * 4 * 2, num_own * CLASSES] for num_own in (6, 7, 7, 7)]  # weights, priors
    first, *others = ranks(4).run(gather_traffic)
    assert first == ([], [*(weights for weights, _ in slices[1:]), *(priors for _, priors in slices[1:])])
    assert others == [(each, []) for each in slices[1:]]


def test_a_network_trained_alone_goes_on_split(ranks, alone) -> None:
    found = ranks(2).run(train_split, REST, FREE, FP64, alone[0])
    assert distance(found[0]._replace(norms=alone[1].norms), alone[1]) < 1e-6


def test_four_ranks_go_on_as_two_and_those_as_one(ranks, alone) -> None:
    four = ranks(4).run(train_split, range(2), FREE, FP64)[0]
    two = ranks(2).run(train_split, range(2, 4), FREE, FP64, four)[0]
    one = train_alone(range(4, 6), start=two)
    assert distance(one._replace(norms=[*four.norms, *two.norms, *one.norms]), alone[1]) < 1e-6


@pytest.mark.defect("parallel states", "weights converted without the optimizer's state")
def test_without_adams_state_they_do_not(ranks, alone) -> None:
    fresh = alone[0]._replace(optimizer={**alone[0].optimizer, "state": {}})
    found = ranks(2).run(train_split, REST, FREE, FP64, fresh)
    assert distance(found[0]._replace(norms=alone[1].norms), alone[1]) > 0.01


def test_a_network_that_no_rank_ever_holds_whole(ranks) -> None:
    state = capsnet().state_dict()
    found = ranks(2).run(split_on_meta, state)
    assert same_bits(found[0][0], state)
    a_child = CLASSES * 4 * 2 + CLASSES
    whole = sum(tensor.numel() for tensor in state.values())
    assert [held for _, held in found] == [whole - 14 * a_child, whole - 13 * a_child]


def is_official(state: dict[str, torch.Tensor]) -> bool:
    """Whether a state looks as the authors' code initialises it."""
    limits = {name: 0.1 if name == "conv.weight" else 0.2 for name in state if name.endswith("weight")}
    limits["class_capsules.packed_weights"] = 0.2
    biases = [tensor for name, tensor in state.items() if name.endswith("bias")]
    within = [0.8 * limit < state[name].abs().max() <= limit for name, limit in limits.items()]
    return all(within) and all((bias == 0.1).all() for bias in biases)


def test_ranks_draw_the_network_that_none_holds_as_it_was_asked_for(ranks) -> None:
    (own, whole, after), (other, _, after_other) = ranks(2).run(initialise_on_meta)
    assert is_official(whole)
    assert (whole["class_capsules.log_priors"] == 0).all()
    weights = whole["class_capsules.packed_weights"]
    assert len(weights.unique()) == weights.numel()  # no two ranks drew the same
    shared = own.keys() - {"class_capsules.packed_weights", "class_capsules.log_priors"}
    assert all(torch.equal(own[name], other[name]) for name in shared)
    assert after == after_other


def test_drawn_module_by_module_it_is_another(ranks) -> None:
    assert not is_official(ranks(2).run(initialise_on_meta, "module by module")[0][1])


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_split_network_keeps_its_settings_and_can_be_copied(ranks, world_size: int) -> None:
    for found in ranks(world_size).run(properties):
        assert [name for name, kept in found.items() if not kept] == []


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_layer_in_two_places_stays_one(ranks, world_size: int) -> None:
    for found in ranks(world_size).run(shared_layer):
        assert [name for name, kept in found.items() if not kept] == []


LOST = "cannot be split over ranks without losing that; add it afterwards"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("subclass", "Tempered cannot be split over ranks, which compute as ClassCapsules; use that itself"),
        ("parametrized", "ParametrizedClassCapsules cannot be split over ranks, which compute as"),
        ("forward hook", f"class capsules with _forward_hooks {LOST}"),
        ("state hook", f"class capsules with _load_state_dict_pre_hooks {LOST}"),
        ("parameter hook", f"class capsules with packed_weights._backward_hooks {LOST}"),
        ("hook after", f"class capsules with packed_weights._post_accumulate_grad_hooks {LOST}"),
        ("buffer", f"class capsules with mask {LOST}"),
        ("module", f"class capsules with norm {LOST}"),
        ("own forward", f"class capsules with forward {LOST}"),
        ("tied layers", "'0.packed_weights' and '1.packed_weights' are one parameter, which cannot be split"),
        ("tied elsewhere", "'0.packed_weights' and '1.packed_weights' are one parameter, which cannot be"),
    ],
)
def test_what_would_be_lost_is_refused(ranks, name: str, message: str) -> None:
    for found in ranks(2).run(refusal, name):
        assert found.startswith(f"ShapeError: {message}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("split in part", "ValueError: Sequential is split in part; call parallelize once, on the whole"),
        ("split already", "ValueError: CapsNet is split already; call parallelize once, on the whole"),
        ("group", "ShapeError: group is of type int; pass a process group, a device mesh, or None for all"),
        ("whole network", "ValueError: CapsNet has no ParallelClassCapsules; call parallelize first"),
        ("no state", "ValueError: state is of type tuple; pass tensors by name, as of state_dict()"),
        ("no capsules", "ValueError: Linear has no ClassCapsules to split; pass a network with some"),
        (
            "backend",
            "ShapeError: class capsules of backend='reference', recompute='streamed' cannot be split",
        ),
        (
            "recompute",
            "ShapeError: class capsules of backend='auto', recompute='none' cannot be split over ranks",
        ),
        ("few children", "ShapeError: 1 children cannot be split over 2 ranks; use at most 1"),
        ("size", "ShapeError: num_parents=0 must be a whole number of at least 1"),
        ("iterations", "ShapeError: iterations=0 must be a whole number of at least 1; the paper has 3"),
        ("gradient", "ShapeError: gradient='Last' is unknown; choose 'full' or 'last'"),
        ("mesh", "ShapeError: mesh has 3 dimensions; pass one of 1 (children) or 2 (replicas, children)"),
        ("not split", "ValueError: CapsNet has no ParallelClassCapsules; call parallelize first"),
        (
            "split twice",
            "ShapeError: state has 'class_capsules.packed_weights' of shape [5, 4, 2, {0}], the whole",
        ),
        (
            "other shape",
            "ShapeError: state has 'class_capsules.packed_weights' of shape [5, 4, 2, 27], its para",
        ),
        (
            "other optimizer",
            "ValueError: optimizer holds parameters that network has not; build it after para",
        ),
        ("uneven", "ShapeError: child_poses has b=[2, 3] images on the ranks in turn; pad to 3 on each"),
    ],
)
def test_refusals_name_value_and_remedy(ranks, name: str, message: str) -> None:
    for found, num_own in zip(ranks(2).run(refusal, name), (13, 14), strict=True):
        assert found.startswith(message.format(num_own))
