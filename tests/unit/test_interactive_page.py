"""interactive.html: its JavaScript, run by Node, computes what PyTorch does; its weights have 8 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digits_run import train_on_digits
from javascript import run_javascript, script_of
from made_runs import TINY, make_run
from torch import Tensor

from capsdist.analysis.report import interactive_page
from capsdist.analysis.report.facts import read_facts
from capsdist.analysis.report.interactive_page import write_interactive
from capsdist.analysis.report.weights import packed, restored
from capsdist.analysis.subject import read_images
from capsdist.config import BaselineCNNConfig, CapsNetConfig, Config, Data, Routing
from capsdist.data import Transform
from capsdist.errors import CheckpointError, ConfigError
from capsdist.models import CapsNet, build_model
from capsdist.train.checkpoint import Checkpoint, EngineState, load_model, write_checkpoint

READ = """
const spec = JSON.parse(%s), network = capsnet.load(spec, %s);
(async () => {
  const found = [];
  for (const pixels of %s) {
    const { poses, lengths } = await capsnet.read(network, pixels, %s, async () => {});
    const classes = capsnet.largest(lengths.at(-1), spec.num_labels), j = classes[0], dim = spec.parent_dim;
    const drawn = spec.decoder ? [...capsnet.decode(network, poses.slice(j * dim, (j + 1) * dim), j)] : null;
    found.push({ poses: [...poses], lengths, classes, drawn });
  }
  console.log(JSON.stringify(found));
})();
"""


def read_by_page(page: str, pixels: Tensor, iterations: int) -> list[dict[str, Any]]:
    """What the scripts in a page make of images [B, C, H, W] in [0, 1]."""
    parts = (script_of(page, "spec"), script_of(page, "weights"))
    images = json.dumps(pixels.flatten(1).tolist())
    program = READ % (*map(json.dumps, parts), images, iterations)
    return run_javascript(script_of(page, "network") + program)


def rounded(network: CapsNet) -> CapsNet:
    """The same network in float64 with the weights that a page has."""
    tensors = network.state_dict()
    network.load_state_dict(restored(*packed(tensors), tensors))
    return network.double()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that has seen 800 digits."""
    model = CapsNetConfig(conv_channels=16, primary_types=2, primary_dim=6, decoder_hidden=(20, 30))
    return train_on_digits(tmp_path_factory.mktemp("digits"), model, steps=25)


NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "paper": ({}, {}, {}),
    "official": (
        {"primary_coupling": True, "capsule_bias": True, "padding": "same", "in_channels": 3},
        {"none_of_the_above": True},
        {"standardise": True},
    ),
    "every other option": (
        {"log_priors": True, "image_size": (11, 9), "primary_stride": 3, "decoder": False, "in_channels": 2},
        {"iterations": 1},
        {"normalise_mean": (0.3, 0.5), "normalise_std": (0.2, 0.7)},
    ),
    "two labels": ({"num_labels": 2, "primary_kernel": 4, "padding": "same"}, {"iterations": 5}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_javascript_computes_what_pytorch_does(name: str, tmp_path: Path) -> None:
    model, routing, data = NETWORKS[name]
    config = Config(
        model=CapsNetConfig(**{**TINY, **model}),
        routing=Routing(**routing),
        data=Data(name="", shift=0, **data),
    )
    network = build_model(config.model, config.routing)
    assert isinstance(network, CapsNet)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.5)
    facts = read_facts(make_run(tmp_path, Config(model=CapsNetConfig(**TINY), data=Data(name="made"))))
    page = interactive_page.interactive_page(facts, config, network, None).decode()
    pixels = torch.rand(3, *network.image_shape)
    seen = Transform.of(config.data, train=False).evaluated(255 * pixels)
    iterations = network.class_capsules.routing.iterations
    found = read_by_page(page, pixels, iterations)
    expected = rounded(network)(seen.double())
    poses = torch.tensor([each["poses"] for each in found])
    torch.testing.assert_close(poses.double(), expected.parent_poses.flatten(1), rtol=1e-4, atol=1e-5)
    lengths = torch.tensor([each["lengths"] for each in found])
    assert lengths.shape == (3, iterations, network.num_classes)
    torch.testing.assert_close(lengths[:, -1].double(), expected.scores, rtol=1e-4, atol=1e-5)
    if network.decoder is None:
        assert [each["drawn"] for each in found] == [None] * 3
        return
    first = torch.tensor([each["classes"][0] for each in found])
    drawn = network.decoder(expected.parent_poses, first).flatten(1)
    shown = torch.tensor([each["drawn"] for each in found])
    torch.testing.assert_close(shown.double(), drawn, rtol=1e-4, atol=1e-5)


def test_a_page_reads_100_digits_as_pytorch_does(run: Path) -> None:
    page = Path(write_interactive(read_facts(run))).read_text()
    config, network = load_model(run / "step_00000025")
    images = read_images(config, network, run.parents[1] / "data/digits/test", 100)
    expected = network(images.seen)
    read = images.predictions
    assert images.right.float().mean() > 0.5  # it has learned, so that classes lie apart
    found = read_by_page(page, images.shown, config.routing.iterations)
    assert [each["classes"][0] for each in found] == read.tolist()
    lengths = torch.tensor([each["lengths"][-1] for each in found])
    assert (lengths - expected.scores).abs().max() < 0.02
    given = json.loads(script_of(page, "given"))
    assert len(given["samples"]) == 20
    assert np.shape(given["typical"]) == (10, 16)
    assert "of 100 test images they read 100 as those of training do" in page


def test_weights_are_rounded_by_output_channel() -> None:
    draw = torch.Generator().manual_seed(7)
    shapes = {
        "conv.weight": (5, 3, 2, 2),
        "conv.bias": (5,),
        "class_capsules.packed_weights": (3, 2, 4, 7),
        "class_capsules.log_priors": (7, 3),
        "class_capsules.bias": (3, 2),
    }
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    tensors["conv.weight"][0] *= 1000
    tensors["conv.weight"][1] = 0
    entries, content = packed(tensors)
    assert [entry.rows for entry in entries] == [5, 0, 6, 0, 0]
    assert all(entry.offset % 4 == 0 for entry in entries)
    found = restored(entries, content, tensors)
    for name in ("conv.bias", "class_capsules.log_priors", "class_capsules.bias"):
        assert torch.equal(found[name], tensors[name])
    for name, axes in (("conv.weight", 1), ("class_capsules.packed_weights", 2)):
        off = (found[name] - tensors[name]).flatten(0, axes - 1).flatten(1).abs().amax(1)
        most = tensors[name].flatten(0, axes - 1).flatten(1).abs().amax(1)
        assert (off <= most / 254 * 1.001).all()  # half a step
        assert off.max() > 0
    assert found["conv.weight"][1].abs().max() == 0


def test_what_has_no_javascript_or_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(name="made", root=str(tmp_path / "a/data"), shift=0)
    other = make_run(tmp_path / "a", Config(model=BaselineCNNConfig(image_size=9, num_classes=4), data=data))
    with pytest.raises(ConfigError, match=r"model.kind='baseline_cnn': is a network that the page has no"):
        write_interactive(read_facts(other))
    facts = read_facts(make_run(tmp_path / "b", Config(model=CapsNetConfig(**TINY), data=data)))
    with pytest.raises(CheckpointError, match="no checkpoint was validated"):
        write_interactive(facts, best=True)
    monkeypatch.setattr(interactive_page, "MAX_BYTES", interactive_page._RESERVED_BYTES + 500)
    with pytest.raises(ConfigError, match="has weights of 0 MB in base64; a page has at most 2 MB"):
        write_interactive(facts)


def test_the_page_of_the_papers_network_is_below_40_mb(tmp_path: Path) -> None:
    config = Config(data=Data(name=""))
    network = build_model(config.model, config.routing)
    state = EngineState(model=network.state_dict(), optimizer={})
    run = make_run(tmp_path, Config(model=CapsNetConfig(**TINY), data=Data(name="made")))
    write_checkpoint(run / "step_00000050", Checkpoint(state, 50, 1, {}, config))
    notes: list[str] = []
    page = Path(write_interactive(read_facts(run), log=notes.append))
    assert 10_000_000 < page.stat().st_size < interactive_page.MAX_BYTES == 40_000_000
    assert notes == [
        "note: the page offers no test images: run 'mnist' has no packed set to draw images of; "
        "its data.name is empty"
    ]
