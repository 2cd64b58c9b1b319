"""README.md is true: its Python runs, and every command in it is known here and runs, with few steps."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limits import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
TINY = ["--data.name", "digits", "--train.max-steps", "2", "--train.global-batch-size", "16"]
TINY += ["--model.conv-channels", "8", "--model.primary-types", "2"]


def blocks(language: str) -> list[str]:
    """The code blocks of the README in `language`."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """The shell commands of the README in their order, comments cut off."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [command for line in lines if (command := line.partition("#")[0].strip())]


def test_the_tree_shows_every_folder_of_tests() -> None:
    folders = {path.parent.name for path in ROOT.glob("tests/*/*.py")}
    [tree] = [block for block in blocks("text") if block.startswith("capsdist/")]
    assert folders - set(re.findall(r"\w+", tree)) == set()


def run(folder: Path, words: list[str], *, status: int = 0) -> str:
    """Run a script of the checkout or the command `capsdist` from `folder`; return both streams."""
    match words:
        case ["python", script, *rest]:
            words = [sys.executable, str(ROOT / script), *rest]
        case ["capsdist", *rest]:
            words = [
                sys.executable,
                "-c",
                "import sys; from capsdist.cli.main import main; sys.exit(main())",
                *rest,
            ]
    done = subprocess.run(
        words,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the packed digits, shared like that of a reader who types all commands."""
    path = tmp_path_factory.mktemp("readme")
    run(path, ["capsdist", "pack", "digits"])
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(path / "IMAGE.png")
    draw_photos(path)
    return path


def draw_photos(folder: Path) -> None:
    """JPEG files of several sizes in two classes, and one that is not among them."""
    draw = np.random.default_rng(0)
    names = [f"PHOTOS/{name}/{number}.jpg" for name in ("cat", "dog") for number in range(24)]
    for name in (*names, "PHOTO.jpg"):
        height, width = draw.integers(70, 200, 2)
        pixels = draw.integers(0, 120, (height, width, 3), dtype=np.uint8)
        pixels[..., 0 if "dog" in name else 2] += 120
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def test_readme_is_short_and_the_first_command_comes_early() -> None:
    lines = README.splitlines()
    assert len(lines) <= 160
    assert any(line.startswith("make quickstart") for line in lines[:25])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


@pytest.mark.parametrize(
    "command", [line for line in commands() if not line.startswith(("make ", "source "))]
)
def test_command(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    match words:
        case ["capsdist", "pack", "mnist", "--source", "FOLDER"]:  # real files: tests/data
            assert "idx" in run(folder, [*words[:-1], str(folder)], status=1)
        case ["capsdist", "pack", "folder", *_]:
            assert "packed: data/mine/train: 40 images of 3 x 64 x 64" in run(folder, words)
        case ["capsdist", "train", "capsnet_small", *_]:
            assert "error_percent" in run(folder, [*words, "--train.max-steps", "2", *TINY[4:]])
        case ["capsdist", "predict", "runs/mine", *_]:
            assert re.search(r"PHOTO.jpg: (cat|dog) \(", run(folder, words))
        case ["capsdist", "train", *rest]:
            printed = run(folder, [*words, *([] if "--check" in rest else TINY)])
            assert "valid" in printed if "--check" in rest else "error_percent" in printed
        case ["capsdist", "evaluate" | "runs", *_]:
            assert "error_percent" in run(folder, words)
        case ["capsdist", "predict", *_]:
            assert "IMAGE.png: " in run(folder, words)
        case ["capsdist", "export", *_]:
            assert "README.md" in run(folder, words)
        case ["capsdist", "doctor", *_]:
            assert "class_capsules" in run(folder, words)
        case ["capsdist", "report", *_]:
            assert "interactive: runs/mnist/interactive.html" in run(folder, words)
        case ["ray", "job", "submit", *options] if "--" in options:  # really submitted in tests/jobs
            entrypoint = options[options.index("--") + 1 :]
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # no bucket of anybody's
            assert "valid" in run(folder, [*entrypoint, "--check"])
        case _:
            pytest.fail(f"README.md has a command that this test does not know: {command}")


def test_the_python_runs(folder: Path) -> None:
    """After the commands: the second block loads the run that they trained."""
    library, predict = blocks("python")
    assert len(library.splitlines()) == 6
    code = library + predict + "assert len(found.names) == 1"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
