"""Routing algorithms behind `routing.algorithm`: registry, rules, counts, compilers, explanations."""

from __future__ import annotations

import copy
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capsdist.algorithms import BUILT_IN, find_algorithm
from capsdist.config import CapsNetConfig, Config, Section, get_preset, problems, with_values
from capsdist.config.models import Routing, find_family
from capsdist.errors import ConfigError, ShapeError
from capsdist.models import CapsNet, ClassCapsules, build_model
from capsdist.models.counts import num_parameters
from capsdist.models.inverted_layers import InvertedCapsules
from capsdist.models.later_layers import (
    AttentionCapsules,
    FullyConnectedCapsules,
    GroupedCapsules,
    HeinsenCapsules,
)
from capsdist.routing import explain

I, D, J, E, G = 15, 4, 3, 6, 5  # noqa: E741
LAYERS: dict[str, Any] = {
    "attention": lambda **options: AttentionCapsules(I, D, J, E, log_priors=True, **options),
    "inverted": lambda **options: InvertedCapsules(I, D, J, E, **options),
    "concurrent": lambda **options: InvertedCapsules(
        I, D, J, E, hidden_capsules=(5, 7), concurrent=True, **options
    ),
    "heinsen": lambda **options: HeinsenCapsules(I, D, J, E, **options),
    "grouped": lambda **options: GroupedCapsules(I, D, J, E, groups=G, bias=True, log_priors=True, **options),
    "fully_connected": lambda **options: FullyConnectedCapsules(I, D, J, E),
}
COUNTS = {
    "attention": I * J * D * E + I * J,
    "inverted": I * J * D * E + 3 * E + 1,
    "concurrent": I * 5 * D * E + 5 * 7 * E * E + 7 * J * E * E + 3 * 2 * E + E + 1,
    "heinsen": I * J * D * E + I * J * E + 2 * I * J,
    "grouped": I * J * D * E + J * E + I * J,
}
SMALL = {"model.conv_channels": 4, "model.primary_types": 2, "model.decoder_hidden": (5, 7)}


def config_of(algorithm: str, **values: object) -> Config:
    fields = {name.replace("__", "."): value for name, value in values.items()}
    return with_values(get_preset("mnist_paper"), {**SMALL, "routing.algorithm": algorithm, **fields})


def drawn(layer: nn.Module) -> nn.Module:
    """The layer in float64, with parameters that are all different."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double()


def poses_of(num: int) -> Tensor:
    generator = torch.Generator().manual_seed(num)
    return torch.randn(num, D, I, generator=generator, dtype=torch.float64).transpose(1, 2)


def grads(layer: Any, poses: Tensor) -> list[Tensor]:
    leaf = poses.detach().requires_grad_()
    parameters = list(layer.parameters())
    return list(torch.autograd.grad(layer(leaf).square().sum(), [leaf, *parameters]))


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compile_whole(name: str) -> None:
    layer, poses = drawn(LAYERS[name]()), poses_of(3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(poses), layer(poses))
    assert_same(grads(compiled, poses), grads(layer, poses))


@pytest.mark.parametrize("name", LAYERS)
def test_exported_layers_take_any_batch_and_can_be_trained(name: str) -> None:
    layer = drawn(LAYERS[name]())
    shapes = {"child_poses": {0: torch.export.Dim("batch")}}
    program = torch.export.export(layer, (poses_of(3),), dynamic_shapes=shapes).module()
    torch.testing.assert_close(program(poses_of(7)), layer(poses_of(7)))
    assert_same(grads(program, poses_of(5)), grads(layer, poses_of(5)))


@pytest.mark.parametrize("name", ["attention", "inverted", "heinsen"])
def test_the_operators_are_what_torch_expects(name: str) -> None:
    operator = torch.ops.capsdist.heinsen_sums if name == "heinsen" else torch.ops.capsdist.sum_coupled
    states = torch.rand(3, J, E).requires_grad_()
    given = [torch.randn(3, I, D).requires_grad_(), torch.randn(J, E, D, I).requires_grad_()]
    if name == "heinsen":
        betas = [torch.randn(I, J).requires_grad_() for _ in range(2)]
        score = torch.randn(3, J).requires_grad_()
        given = [torch.rand(3, I).requires_grad_(), *given, torch.randn(J, E, I), *betas, score, states]
    torch.library.opcheck(operator.default, (*given, torch.rand(3, J, E).requires_grad_()))


@pytest.mark.parametrize("name", ["attention", "inverted", "heinsen"])
def test_torch_func_and_trace_take_the_reference(name: str) -> None:
    layer = drawn(LAYERS[name]())
    poses = poses_of(3)
    asking = LAYERS[name](backend="streamed").double()
    found = torch.func.grad(lambda each: layer(each).square().sum())(poses)
    torch.testing.assert_close(found, grads(layer, poses)[0])
    with pytest.raises(ShapeError, match=r"torch\.func and forward mode differentiate the reference only"):
        torch.func.grad(lambda each: asking(each).sum())(poses)


@pytest.mark.parametrize("name", ["attention", "inverted", "heinsen"])
def test_a_second_derivative_is_refused(name: str) -> None:
    layer, poses = drawn(LAYERS[name]()), poses_of(2).requires_grad_()
    (first,) = torch.autograd.grad(layer(poses).square().sum(), poses, create_graph=True)
    with pytest.raises(NotImplementedError, match="choose backend='reference'"):
        torch.autograd.grad(first.sum(), poses)


@pytest.mark.parametrize("name", ["attention", "inverted", "heinsen"])
def test_autocast_takes_nothing_away(name: str) -> None:
    layer, poses = LAYERS[name](), poses_of(3).float()
    expected = layer(poses)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(poses), expected, atol=0, rtol=0)
    assert layer(poses.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", COUNTS)
def test_layers_have_so_many_parameters(name: str) -> None:
    assert sum(each.numel() for each in LAYERS[name]().parameters()) == COUNTS[name]


@pytest.mark.parametrize("sizes", [(I, D, J, E), (1152, 8, 10, 16), (7, 2, 2, 3)])
def test_the_fully_connected_control_is_as_large_as_capsules(sizes: tuple[int, ...]) -> None:
    inputs, outputs = sizes[0] * sizes[1], sizes[2] * sizes[3]
    found = sum(each.numel() for each in FullyConnectedCapsules(*sizes).parameters())
    assert abs(found - inputs * outputs) <= (inputs + outputs + 1) / 2


@pytest.mark.parametrize("algorithm", BUILT_IN)
def test_networks_of_every_algorithm_are_priced_exactly(algorithm: str) -> None:
    groups = 2 if algorithm == "grouped" else 1
    config = config_of(algorithm, routing__groups=groups)
    assert problems(config) == []
    cost = find_family("capsnet").cost
    assert cost is not None
    assert cost(config.model, config.routing).parameters == num_parameters(config)
    output = build_model(config.model, config.routing)(torch.rand(2, 1, 28, 28))
    assert output.scores.shape == (2, 10)
    assert float(output.scores.detach().min()) >= 0
    assert float(output.scores.detach().max()) < 1


@pytest.mark.parametrize("algorithm", BUILT_IN)
def test_resnet_capsules_take_every_algorithm(algorithm: str) -> None:
    model = find_family("resnet_capsnet").model(
        image_size=16, stem_channels=(8, 8), stem_blocks=(0, 0), primary_types=2
    )  # fmt: skip
    config = Config(model=model, routing=config_of(algorithm).routing)
    assert problems(config) == []
    assert build_model(config.model, config.routing)(torch.rand(2, 1, 16, 16)).scores.shape == (2, 10)


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_layers_of_inverted_attention_run_one_after_another_or_all_at_once(
    iterations: int, concurrent: bool
) -> None:
    options = {"hidden_capsules": (5, 7), "concurrent": concurrent, "iterations": iterations}
    layer = drawn(InvertedCapsules(I, D, J, E, **options))
    whole = copy.deepcopy(layer)
    for part in whole.layers:
        part.backend = "reference"

    def all_passes(child_poses: Tensor) -> Tensor:
        """Every pass of every layer, those that change nothing included."""
        poses = [child_poses]
        for part in whole.layers:
            poses.append(part(poses[-1]))
            for _ in range(0 if concurrent else iterations - 1):
                poses[-1] = part(poses[-2], poses[-1])
        for _ in range(iterations - 1 if concurrent else 0):
            above = [part(*pair) for part, pair in zip(whole.layers, pairwise(poses), strict=True)]
            poses = [child_poses, *above]
        logits = poses[-1] @ whole.read_out + whole.read_out_bias
        return logits.sigmoid()[..., None] * torch.nn.functional.normalize(poses[-1], dim=-1)

    poses = poses_of(6)
    torch.testing.assert_close(layer(poses), all_passes(poses))
    leaf, other = (poses.detach().requires_grad_() for _ in range(2))
    found = torch.autograd.grad(layer(leaf).square().sum(), [leaf, *layer.parameters()])
    expected = torch.autograd.grad(all_passes(other).square().sum(), [other, *whole.parameters()])
    assert_same(list(found), list(expected))


def test_concurrent_passes_are_not_those_of_one_layer_after_another() -> None:
    options = {"hidden_capsules": (5, 7), "iterations": 3}
    layer = drawn(InvertedCapsules(I, D, J, E, **options))
    before = layer(poses_of(6))
    layer.concurrent = True
    assert float((layer(poses_of(6)) - before).detach().abs().max()) > 1e-2


def test_uniform_coupling_is_one_iteration_of_dynamic_routing() -> None:
    torch.manual_seed(0)
    average = build_model(*sections("average"))
    torch.manual_seed(0)
    once = build_model(*sections("dynamic", routing__iterations=1))
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(average(images).scores, once(images).scores)
    assert average.state_dict().keys() == once.state_dict().keys()


def sections(algorithm: str, **values: object) -> tuple[CapsNetConfig, Any]:
    config = config_of(algorithm, **values)
    assert isinstance(config.model, CapsNetConfig)
    return config.model, config.routing


def test_dynamic_routing_is_the_default_and_names_its_parameters_as_ever() -> None:
    network = build_model(*sections("dynamic"))
    assert isinstance(network, CapsNet)
    assert type(network.class_capsules) is ClassCapsules
    assert "class_capsules.packed_weights" in network.state_dict()
    assert Config.model_validate({"routing": {"iterations": 5}}).routing.algorithm == "dynamic"


UNREAD = [
    ("attention", "routing__iterations", 5),
    ("attention", "routing__none_of_the_above", True),
    ("attention", "model__capsule_bias", True),
    ("inverted", "model__log_priors", True),
    ("inverted", "routing__gradient", "last"),
    ("attention", "routing__hidden_capsules", (16,)),
    ("heinsen", "routing__concurrent", True),
    ("heinsen", "routing__recompute", "none"),
    ("heinsen", "model__initialisation", "truncated_normal"),
    ("grouped", "model__primary_coupling", True),
    ("dynamic", "routing__groups", 2),
    ("average", "routing__iterations", 2),
    ("average", "model__log_priors", True),
    ("fully_connected", "routing__backend", "reference"),
]


@pytest.mark.parametrize(("algorithm", "field", "value"), UNREAD)
def test_options_that_an_algorithm_does_not_read_are_refused(
    algorithm: str, field: str, value: object
) -> None:
    found = {problem.field: str(problem) for problem in problems(config_of(algorithm, **{field: value}))}
    name = field.replace("__", ".")
    assert f"is not read by routing.algorithm={algorithm}" in found[name]


@pytest.mark.parametrize("section", [Routing, CapsNetConfig])
def test_help_texts_name_the_algorithms_that_read_an_option(section: type[Section]) -> None:
    reads = {name: find_algorithm(name).reads for name in BUILT_IN}
    options = {*Routing.model_fields, *frozenset().union(*reads.values())} - {"algorithm"}
    for option in options & section.model_fields.keys():
        text = " ".join((section.model_fields[option].description or "").split())
        assert text.endswith(f" Read by {', '.join(name for name in reads if option in reads[name])}."), (
            option
        )


@pytest.mark.parametrize(
    ("algorithm", "field", "value", "message"),
    [
        ("quick", "routing__iterations", 3, "is not a routing algorithm"),
        ("heinsen", "train__capsule_ranks", 2, "its class capsules compute on one rank"),
        ("inverted", "routing__concurrent", True, "routing.hidden_capsules is empty"),
        ("attention", "routing__backend", "fused", "has no kernels for routing.algorithm=attention yet"),
        ("grouped", "routing__groups", 3, "does not divide the 2 capsule types of model.primary_types"),
    ],
)
def test_what_an_algorithm_cannot_do_is_refused(
    algorithm: str, field: str, value: object, message: str
) -> None:
    more = {"train__num_workers": 2} if field == "train__capsule_ranks" else {}
    found = problems(config_of(algorithm, **{field: value}, **more))
    assert any(message in str(problem) for problem in found), found


def test_class_capsules_of_another_algorithm_have_no_official_start() -> None:
    with pytest.raises(ValueError, match="is for ClassCapsules"):
        CapsNet(class_layer=AttentionCapsules, initialisation="truncated_normal", primary_types=2)


@pytest.mark.parametrize("algorithm", ["attention", "inverted", "heinsen"])
def test_explain_tells_the_form_and_that_there_is_no_kernel(algorithm: str) -> None:
    poses, weights = torch.randn(2, I, D), torch.randn(I, J, D, E)
    found = explain(poses, weights, algorithm=algorithm)
    assert found.backend == "streamed"
    assert "no GPU kernel exists for this algorithm yet" in found.lines["fused"]
    assert explain(poses, weights, algorithm=algorithm, backend="reference").backend == "reference"
    with pytest.raises(ShapeError, match="no GPU kernel"):
        explain(poses, weights, algorithm=algorithm, backend="fused")


def test_explain_of_algorithms_made_of_dynamic_routing_and_of_the_control() -> None:
    poses, weights = torch.randn(2, I, D), torch.randn(I, J, D, E)
    for algorithm in ("grouped", "average", "dynamic"):
        assert str(explain(poses, weights, algorithm=algorithm)) == str(explain(poses, weights))
    assert explain(poses, weights, algorithm="fully_connected").backend == "linear"


OWN = """
from capsdist.algorithms import Algorithm

def layer(model, routing):
    import torch
    from capsdist.models import PackedCapsules

    class Mean(PackedCapsules):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.add_parameters(self.num_children)

        def forward(self, child_poses):
            return torch.einsum("bid,jedi->bje", child_poses, self.packed_weights).tanh() / 4

    return Mean

OWN = Algorithm("means", "none", frozenset(), layer, explain=lambda *arguments: None)
"""


def test_an_algorithm_of_a_user_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_routing.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_routing", raising=False)
    config = config_of("own_routing:OWN")
    assert problems(config) == []
    network = build_model(config.model, config.routing)
    assert type(network.class_capsules).__name__ == "Mean"
    network(torch.rand(2, 1, 28, 28)).scores.sum().backward()
    cost = find_family("capsnet").cost
    assert cost is not None
    with pytest.raises(ConfigError, match="has no function `cost`: parameters, FLOP and memory"):
        cost(config.model, config.routing)
    find_algorithm.cache_clear()
