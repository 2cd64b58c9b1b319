"""`capsdist export`: files that compute what capsdist predicts, read here as other programs read them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import BASELINE, CONFIGS, CONV, CROPPED, EM, INVERTED, SIZES, TWO, exported, save
from torch import Tensor, fx, nn

import capsdist
from capsdist.cli.main import main
from capsdist.config import Config, Family, NetworkConfig
from capsdist.console import DONE, FAILED, INVALID
from capsdist.errors import CheckpointError
from capsdist.export import FORMATS, format
from capsdist.export.weights import Weights
from capsdist.models import Output
from faults.strikes import flip_bit


def images_of(name: str, number: int) -> Tensor:
    """Noise for a network, other than what the exporter compares."""
    channels = CONFIGS[name].model.in_channels
    return torch.randint(0, 256, (number, channels, *SIZES[name]), dtype=torch.uint8)


def check_programs(name: str, run: Path, programs: dict[str, Callable[..., Any]]) -> None:
    """Compare programs with the prediction of the run, for batches that the exporter does not try."""
    network, count = capsdist.load(run), CONFIGS[name].model.num_labels
    for number in (1, 4, 7):
        images = images_of(name, number)
        expected = network.predict(images)
        found = programs["classifier"](images)
        torch.testing.assert_close(found[0], expected.scores, atol=1e-5, rtol=1e-4)
        assert ("decoder" in programs) == getattr(CONFIGS[name].model, "decoder", False)
        if expected.poses is None:
            assert len(found) == 1
            continue
        assert float(expected.scores.mean()) > 0.1, "lengths that say nothing"
        torch.testing.assert_close(found[1], expected.poses, atol=1e-5, rtol=1e-4)
        if "decoder" not in programs:
            continue
        labels = torch.randint(0, 3, (number,)) if count == 1 else torch.randint(-1, 3, (number, count))
        drawn = programs["decoder"](found[1], labels)
        drawn = drawn if isinstance(drawn, Tensor) else drawn[0]
        torch.testing.assert_close(drawn, network.reconstruct(images, labels), atol=1e-5, rtol=1e-4)


def with_slow(*quick: str) -> list[Any]:
    """All configurations for a test that takes seconds; only `quick` in the default suite."""
    return [*quick, *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name not in quick)]


@pytest.mark.parametrize("name", with_slow(BASELINE, EM, CONV, INVERTED))
def test_programs_of_torch_need_no_capsdist(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "run", CONFIGS[name])
    height, width = map(str, SIZES[name])
    assert exported(folder, "torch-export", tmp_path / "out", "--image-size", height, width) == DONE
    programs = {}
    for path in (tmp_path / "out").glob("*.pt2"):
        program = torch.export.load(path)
        graphs = [each for each in program.graph_module.modules() if isinstance(each, fx.GraphModule)]
        assert not any("capsdist" in each.code for each in graphs)  # some lie in others
        programs[path.stem] = program.module()
    check_programs(name, folder, programs)


@pytest.mark.parametrize("name", with_slow(TWO))
def test_onnx_in_onnx_runtime(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'capsdist[export]'")
    folder = save(tmp_path / "run", CONFIGS[name])
    height, width = map(str, SIZES[name])
    assert exported(folder, "onnx", tmp_path / "out", "--image-size", height, width) == DONE
    assert re.search(r"classifier\.onnx  [\d,]+ bytes\n", capsys.readouterr().out)
    shape = [CONFIGS[name].model.in_channels, *SIZES[name]]
    assert json.loads((tmp_path / "out/config.json").read_text())["image_shape"] == shape
    programs, signatures = {}, {}
    for path in (tmp_path / "out").glob("*.onnx"):
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        inputs, outputs = [each.name for each in session.get_inputs()], session.get_outputs()
        signatures[path.stem] = (inputs, [each.name for each in outputs])
        assert {each.shape[0] for each in (*session.get_inputs(), *outputs)} == {"batch"}

        def run_session(*given: Tensor, session=session, inputs=inputs) -> list[Tensor]:
            values = {name: each.numpy() for name, each in zip(inputs, given, strict=True)}
            return [torch.from_numpy(each) for each in session.run(None, values)]

        programs[path.stem] = run_session
    names = ["scores", "parent_poses"][: 1 if name == BASELINE else 2]
    assert signatures.pop("classifier") == (["images"], names)
    has_decoder = getattr(CONFIGS[name].model, "decoder", False)
    decoder = {"decoder": (["parent_poses", "labels"], ["reconstructions"])}
    assert signatures == (decoder if has_decoder else {})
    check_programs(name, folder, programs)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_loaded_back_with_the_same_predictions(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "run", CONFIGS[name])
    hub, again = tmp_path / "hub", tmp_path / "again"
    assert exported(folder, "hub", hub) == DONE
    assert exported(hub, "safetensors", again) == DONE
    assert {path.name for path in hub.iterdir()} - {path.name for path in again.iterdir()} == {"README.md"}
    images = images_of(name, 3)
    expected = capsdist.load(folder).predict(images)
    for each in (hub, again):
        found = capsdist.load(each).predict(images)
        assert (found.names, torch.equal(found.scores, expected.scores)) == (expected.names, True)
    assert "private" not in (hub / "config.json").read_text()
    flip_bit(hub / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"hub is damaged: model\.safetensors has "):
        capsdist.load(hub)
    (again / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"again is damaged: config\.json "):
        capsdist.load(again)


class WrongFormat(Weights):
    """Reads other numbers than it writes."""

    def read(self, folder: Path) -> format.Read:
        read = super().read(folder)

        def run(images: Tensor, labels: Tensor):
            found = read(images, labels)
            return found._replace(reconstructions=found.reconstructions + 0.01)

        return run


WRONG = WrongFormat(has_card=False)


class BranchingConfig(NetworkConfig):
    kind: str = "test_export:BRANCHING"


class Branching(nn.Module):
    """A network that torch.export cannot follow: what it computes depends on the pixels."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(pixels, 3)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        return Output(self.layer(images.flatten(1)) if images.sum() > 1 else images.new_zeros(len(images), 3))


BRANCHING = Family(
    title="branching", model=BranchingConfig, build=lambda model, routing: Branching(25), losses=dict
)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two, cropped = (save(tmp_path / name, CONFIGS[name]) for name in (TWO, CROPPED))
    own = Config(model=BranchingConfig(image_size=5, num_classes=3))
    branching = save(tmp_path / "branching", own)
    before = sorted(tmp_path.rglob("*"))

    def refusal(run: Path, to: str, *options: str, status: int, output: Path = tmp_path / "out") -> str:
        assert exported(run, to, output, *options) == status
        assert sorted(tmp_path.rglob("*")) == before
        [line] = capsys.readouterr().err.splitlines()[-1:]
        return line

    line = refusal(two, "test_export:WRONG", status=FAILED)
    assert "something else: reconstructions of 1 images differ by up to 0.01 from capsdist's own" in line
    assert "exists already; remove it" in refusal(two, "hub", status=FAILED, output=cropped)
    assert "to='tflite': is not a format; choose one of safet" in refusal(two, "tflite", status=INVALID)
    assert "image_size=0: is not known" in refusal(cropped, "torch-export", status=INVALID)
    small = refusal(cropped, "torch-export", "--image-size", "6", "9", status=INVALID)
    assert "image_size=(6, 9): does not fit; set at least 7 x 7" in small
    assert "image_size=0: is not known" in refusal(two, "onnx", status=INVALID)
    assert "is not for hub" in refusal(two, "hub", "--image-size", "9", "9", status=INVALID)
    assert "use --to hub" in refusal(two, "safetensors", "--split", "data/x", status=INVALID)
    assert "torch.export cannot export this network (" in refusal(branching, "torch-export", status=FAILED)
    monkeypatch.setattr(format, "find_spec", lambda name: None)
    line = refusal(two, "onnx", status=INVALID)
    assert "needs the packages onnxscript and onnxruntime; pip install 'capsdist[export]'" in line


def test_every_format_that_has_a_name_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in FORMATS)
