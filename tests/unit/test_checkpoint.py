"""The checkpoint's format: what is written is read, and whatever is not whole is refused with its name."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import save_file

import capsdist
from capsdist.config import CapsNetConfig, Config, Optim
from capsdist.errors import CheckpointError
from capsdist.models import build_model
from capsdist.train import state, tensors
from capsdist.train.checkpoint import (
    Checkpoint,
    EngineState,
    load_model,
    open_checkpoint,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from capsdist.train.engine.replicated import load_replicated
from capsdist.train.manifest import digest_of
from capsdist.train.optim import StateForm, build_optimizer
from capsdist.train.tensors import open_tensors, write_tensors

CONFIG = Config(
    model=CapsNetConfig(
        image_size=9, num_classes=3, conv_channels=4, conv_kernel=3, primary_types=3, primary_dim=2,
        primary_kernel=3, class_dim=5, decoder_hidden=(7, 9),
    )
)  # fmt: skip
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def checkpoint_of(seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    weights = build_model(CONFIG.model, CONFIG.routing).state_dict()
    slots = {f"{name}/exp_avg": torch.randn_like(tensor) for name, tensor in weights.items()}
    slots["conv.weight/step"] = torch.tensor(7.0)
    return Checkpoint(
        engine=EngineState(weights, slots, {"scale": 1024.0, "growth_tracker": 3}),
        step=7,
        epoch=1,
        position={"digest": "abc", "epoch": 1, "step": 3},
        config=CONFIG,
        metrics={"error_percent": 2.5},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "step-7", checkpoint_of())
    return tmp_path / "step-7"


def test_every_file_is_on_disk_before_the_manifest_has_its_name(
    tmp_path: Path, flushed: Callable[[Path], list[tuple[str, bool]]]
) -> None:
    seen = flushed(tmp_path / "step-7" / "manifest.json")
    write_checkpoint(tmp_path / "step-7", checkpoint_of())
    found = [(re.sub(r"\.[0-9a-f]{8}", "", name), is_named) for name, is_named in seen]
    assert found == [
        ("model.safetensors", False), ("optimizer.safetensors", False), (".state.json", False),
        ("step-7", False), (".manifest.json", False), ("step-7", True), (tmp_path.name, True),
    ]  # fmt: skip


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def reseal(folder: Path) -> None:
    """Make the manifest fit the files again, as another version of the program would have written them."""

    def change(manifest: dict) -> None:
        for name in manifest["files"]:
            content = (folder / name).read_bytes()
            manifest["files"][name] = {
                "bytes": len(content),
                "xxh3_128": xxhash.xxh3_128(content).hexdigest(),
            }

    edit_json(folder / "manifest.json", change)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_written_is_read(tmp_path: Path, seed: int) -> None:
    written = checkpoint_of(seed)
    write_checkpoint(tmp_path, written)
    read = read_checkpoint(tmp_path)
    for name, tensor in {**written.engine.model, **written.engine.optimizer}.items():
        assert torch.equal({**read.engine.model, **read.engine.optimizer}[name], tensor)
    assert read.engine.loss_scale == written.engine.loss_scale
    assert (read.step, read.epoch, read.position) == (7, 1, written.position)
    assert read.config == CONFIG
    assert read.metrics == {"error_percent": 2.5}
    assert read.versions["capsdist"] == capsdist.__version__
    assert read.versions["torch"] == torch.__version__


def test_the_folder_holds_four_files_and_no_pickle(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_load_model_gives_the_network_in_evaluation_mode(folder: Path) -> None:
    config, network = load_model(str(folder))
    assert config == CONFIG
    assert not network.training
    images = torch.rand(2, 1, 9, 9)
    torch.manual_seed(0)
    rebuilt = build_model(CONFIG.model, CONFIG.routing).eval()
    assert torch.equal(network(images).scores, rebuilt(images).scores)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*/nowhere; give the folder that holds"):
        read_checkpoint(tmp_path / "nowhere")


def test_without_its_manifest_it_is_half_written(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"half written: no manifest\.json; take an older"):
        verify_checkpoint(folder)


@pytest.mark.parametrize("name", FILES[:3])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {name}; take an older"):
        verify_checkpoint(folder)


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_is_noticed_and_named(folder: Path, name: str, damage: str) -> None:
    content = bytearray((folder / name).read_bytes())
    if damage == "cut":
        del content[-1]
    else:
        content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is damaged: {name} has .*, its manifest says"):
        read_checkpoint(folder)


def test_a_file_that_is_cut_after_it_was_read_is_no_signal(folder: Path) -> None:
    """In a process of its own: what is mapped and cut ends the process with SIGBUS."""
    code = (
        "import os, sys\nfrom capsdist.train.checkpoint import read_checkpoint\n"
        "engine = read_checkpoint(sys.argv[1]).engine\n"
        "for name in ('model', 'optimizer'): os.truncate(f'{sys.argv[1]}/{name}.safetensors', 0)\n"
        "print(sum(bool(tensor.isfinite().all()) for tensor in (engine.model | engine.optimizer).values()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    engine = checkpoint_of().engine
    assert (done.returncode, done.stdout) == (0, f"{len(engine.model) + len(engine.optimizer)}\n"), (
        done.stderr
    )


@pytest.mark.parametrize("name", FILES[:2])
def test_a_file_that_is_cut_while_it_is_read_is_damage(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_and_hash() -> xxhash.xxh3_128:
        os.truncate(folder / name, 100)
        return digest()

    digest = xxhash.xxh3_128
    monkeypatch.setattr(xxhash, "xxh3_128", cut_and_hash)
    with pytest.raises(CheckpointError, match=f"is damaged: {name} has .*100.*, its manifest says"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("change", ["cut", "written again", "removed"])
def test_a_file_that_changes_after_it_was_verified_is_an_error(folder: Path, name: str, change: str) -> None:
    state = open_checkpoint(folder).engine
    assert state.read().model.keys() == state.model.keys()  # as often as one likes
    if change == "cut":
        os.truncate(folder / name, 100)
    elif change == "removed":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointError, match=rf"/{name} was changed while it was read; start again"):
        state.read()


@pytest.mark.parametrize("piece", [1 << 22, 5])
def test_files_of_tensors_are_those_of_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(state, "PIECE", piece)
    monkeypatch.setattr(tensors, "PIECE", piece)
    draw = torch.Generator().manual_seed(piece)
    values = {
        "b": torch.randn(3, 7, generator=draw),
        "a": torch.randn(5, 2, generator=draw).T,  # in another layout
        "c/double": torch.randn(4, generator=draw, dtype=torch.float64),
        "a/step": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "count": torch.tensor(3),
        "flags": torch.tensor([True, False, True]),
        "int": torch.arange(7, dtype=torch.int32),
        'é"\n\\': torch.tensor([-0.0, math.pi]),
    }
    for number, chosen in enumerate((values, {"b": values["b"]}, {})):
        entry = write_tensors(tmp_path / f"ours-{number}", chosen)
        save_file({name: tensor.contiguous() for name, tensor in chosen.items()}, tmp_path / "theirs")
        content = (tmp_path / "theirs").read_bytes()
        assert (tmp_path / f"ours-{number}").read_bytes() == content
        assert entry == digest_of(content)
        found = EngineState(open_tensors(tmp_path / f"ours-{number}", entry), {}).read().model
        assert found.keys() == chosen.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in chosen.items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in chosen.items())


def test_a_tensor_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'n' is of type torch\.float16; checkpoints hold float32"):
        write_tensors(tmp_path / "file", {"n": torch.zeros(3, dtype=torch.float16)})


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"[]", "its header is no object"),
        (b"{", "is not JSON"),
        (b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', "8 bytes of tensors|4 bytes of"),
        (
            b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            "'x' is not where its header says",
        ),
        (b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "shape.0=-1"),
        (b'{"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 4]}}', "'x' is not where its"),
        (
            b'{"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}',
            "holds 'x' of type F4, not float32",
        ),
        (b'{"x": 3}', "instead of an object"),
    ],
)
def test_a_header_that_lies_is_damage(folder: Path, header: bytes, reason: str) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    reseal(folder)
    with pytest.raises(CheckpointError, match=rf"is damaged: model\.safetensors .*({reason})"):
        read_checkpoint(folder)


@pytest.mark.parametrize("value", [-1.0, 1.5, math.inf, math.nan])
def test_a_number_of_steps_that_adam_cannot_have_done_is_damage(
    folder: Path, value: float, tmp_path: Path
) -> None:
    forged = checkpoint_of()
    forged.engine.optimizer["conv.weight/step"] = torch.tensor(value)
    write_checkpoint(tmp_path / "step-9", forged)
    with pytest.raises(
        CheckpointError, match=r"is damaged: optimizer\.safetensors holds 'conv\.weight/step' with"
    ):
        read_checkpoint(tmp_path / "step-9")
    network = build_model(CONFIG.model, CONFIG.routing)
    slots = {
        f"{name}/{slot}": torch.zeros_like(tensor)
        for name, tensor in network.named_parameters()
        for slot in ("exp_avg", "exp_avg_sq")
    }
    steps = {f"{name}/step": torch.tensor(value) for name, _ in network.named_parameters()}
    with pytest.raises(
        CheckpointError, match=r"holds 'conv\.weight/step' with values that Adam cannot have; resume"
    ):
        load_replicated(
            EngineState(network.state_dict(), slots | steps),
            network,
            build_optimizer(network, Optim()),
            StateForm.of(Optim()),
        )


@pytest.mark.parametrize("value", [-1e-9, math.nan])
def test_a_second_moment_below_0_is_damage(tmp_path: Path, value: float) -> None:
    forged = checkpoint_of()
    forged.engine.optimizer["conv.weight/exp_avg_sq"] = torch.tensor([1.0, value, 2.0])
    write_checkpoint(tmp_path / "step-9", forged)
    with pytest.raises(CheckpointError, match=r"holds 'conv\.weight/exp_avg_sq' with values that"):
        read_checkpoint(tmp_path / "step-9")


def test_a_manifest_cut_off_is_damage(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CheckpointError, match=r"is damaged: manifest\.json is not JSON"):
        read_checkpoint(folder)


def test_another_format_is_refused(folder: Path) -> None:
    edit_json(folder / "manifest.json", lambda manifest: manifest.update(format=99))
    with pytest.raises(CheckpointError, match="has format 99, this version of capsdist reads format 1"):
        read_checkpoint(folder)


def test_unknown_fields_of_the_configuration_are_named(folder: Path) -> None:
    edit_json(folder / "state.json", lambda state: state["config"]["model"].update(horns=2))
    reseal(folder)
    with pytest.raises(
        CheckpointError, match=r"does not know: model\.horns \(Extra inputs are not permitted\)"
    ):
        read_checkpoint(folder)


def test_a_state_that_does_not_fit_its_own_configuration_is_refused(tmp_path: Path) -> None:
    whole = checkpoint_of()
    del whole.engine.model["conv.bias"]
    write_checkpoint(tmp_path, whole)
    with pytest.raises(CheckpointError, match=r"lacks 'conv\.bias'"):
        load_model(tmp_path)


@pytest.mark.parametrize("field", ["conv_kernel", "conv_channels", "primary_dim", "primary_stride"])
def test_a_configuration_of_no_network_is_one_line(folder: Path, field: str) -> None:
    edit_json(folder / "state.json", lambda state: state["config"]["model"].update({field: -3}))
    reseal(folder)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
