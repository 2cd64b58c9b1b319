"""What people see of a split: the histogram and contact sheet of `verify`, and the samples of `show`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from capsdist.analysis import sheets
from capsdist.analysis.sheets import Cell, ClassCounts, Picks, draw_cells, image_of, in_rows, titled
from capsdist.cli import show as command_show
from capsdist.cli.main import main
from capsdist.data import Transform, verify_split, write_split
from capsdist.storage.documents import printable

CLASSES = ("cat", "dog", "a class with a long name", "$x$ \n", "absent")


def write(
    folder: Path, num: int = 60, shape: tuple[int, int, int] = (3, 20, 24), labels_each: int = 0
) -> Path:
    """A split whose images tell their id: the first pixel."""
    rng = np.random.default_rng(num)
    images = rng.integers(0, 256, (num, *shape), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(num)
    labels = rng.integers(0, 4, num)
    if labels_each:
        labels = np.stack([labels, np.where(labels > 1, -1, labels + 1)], 1)
    fields = {"azimuth": np.arange(num), "place": np.arange(2 * num).reshape(num, 2)}
    write_split(folder, images, labels, classes=CLASSES, block_size=7, shard_size=20, fields=fields)
    return folder


def labels_of(folder: Path) -> np.ndarray:
    found: list[np.ndarray] = []
    verify_split(folder, observe=lambda first, fields: found.append(sheets.labels_of(fields)))
    return np.concatenate(found)


# ---- verify


def test_every_sample_is_observed_once_in_order(tmp_path: Path) -> None:
    seen: list[int] = []

    def observe(first: int, fields) -> None:
        assert fields["image"][:, 0, 0, 0].tolist() == list(range(first, first + len(fields["image"])))
        seen.extend(fields["azimuth"].tolist())

    verify_split(write(tmp_path / "train"), observe=observe)
    assert seen == list(range(60))


@pytest.mark.parametrize("labels_each", [0, 2])
def test_counts_are_those_of_a_plain_count(tmp_path: Path, labels_each: int) -> None:
    folder, counts = write(tmp_path / "train", labels_each=labels_each), ClassCounts()
    verify_split(folder, observe=counts)
    labels = labels_of(folder)
    assert counts.of(5) == [int((labels == label).sum()) for label in range(5)]


def test_picks_have_all_classes_alike_and_come_from_all_over(tmp_path: Path) -> None:
    folder, picks = write(tmp_path / "train", num=250, shape=(1, 4, 4)), Picks(20)
    verify_split(folder, observe=picks)
    labels, ids = labels_of(folder), [int(cell.title.split("\n")[-1]) for cell in picks.cells(CLASSES)]
    assert np.bincount(labels[ids]).tolist() == [5, 5, 5, 5]
    assert len(set(ids)) == 20
    assert max(ids) > 125 > min(ids)
    for cell in picks.cells(CLASSES):
        assert round(cell.image[0, 0] * 255) == int(cell.title.split("\n")[-1])


def test_of_many_classes_some_are_shown() -> None:
    picks, names = Picks(10), [f"class {number}" for number in range(37)]
    images = np.zeros((74, 1, 2, 2), np.uint8)
    for first in (0, 74):
        picks(first, {"image": images, "label": np.arange(74) % 37})
    shown = [cell.title.split("\n")[0] for cell in picks.cells(names)]
    assert len(shown) == len(set(shown)) == 10
    assert (shown[0], shown[-1]) == ("class 0", "class 36")


def test_verify_prints_a_histogram_and_writes_the_sheet(tmp_path: Path, capsys) -> None:
    folder = write(tmp_path / "train")
    assert main(["verify", str(folder), "--picture", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = np.bincount(labels_of(folder), minlength=5)
    assert lines[0].startswith(f"intact: {folder}: 60 images")
    for label, (line, count) in enumerate(zip(lines[1:6], counts, strict=True)):
        assert line.split()[0] == str(label)
        assert line.count("#") == round(40 * count / counts.max())
        assert f" {count}" in line
    assert lines[4].split()[1:3] == ["$x$", "\\n"]
    assert lines[6:] == [f"picture: {tmp_path}/sheet.png"]
    assert imread(tmp_path / "sheet.png").std() > 0.05


def test_several_splits_have_a_picture_each(tmp_path: Path, capsys) -> None:
    for split in ("train", "test"):
        write(tmp_path / "data/own" / split, num=9)
    assert main(["verify", str(tmp_path / "data"), "--picture", str(tmp_path / "sheet.png")]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "sheet-own-test.png",
        "sheet-own-train.png",
    ]


def test_a_damaged_split_has_no_picture_and_the_status_is_1(tmp_path: Path, capsys) -> None:
    good, bad = write(tmp_path / "own/train"), write(tmp_path / "own/test")
    shard = bad / "shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["verify", str(tmp_path), "--picture", str(tmp_path / "sheet.png")]) == 1
    assert f"error: damaged: {bad}; pack again" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*.png")] == [f"sheet-own-{good.name}.png"]


def test_many_classes_are_one_line(tmp_path: Path, capsys) -> None:
    labels = np.arange(202) % 101
    names = [f"class {number}" for number in range(101)]
    write_split(tmp_path / "train", np.zeros((202, 1, 2, 2), np.uint8), labels, classes=names)
    assert main(["verify", str(tmp_path / "train")]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  101 classes of 2 to 2 images"]


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path, capsys) -> None:
    folder, place = write(tmp_path / "train"), tmp_path / "nowhere/sheet.png"
    for words in (["verify", str(folder)], ["show", str(folder)]):
        assert main([*words, "--picture", str(place)]) == 1
        reason = "cannot be written (No such file or directory); give another file with --picture"
        assert capsys.readouterr().err == f"error: {place}: {reason}\n"


# ---- show


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[list[Cell]]]:
    """What is drawn, also really drawn."""
    found: list[list[list[Cell]]] = []

    def draw(rows, heading: str) -> Figure:
        found.append(rows)
        return draw_cells(rows, heading)

    monkeypatch.setattr(sheets, "draw_cells", draw)
    return found


def test_show_draws_what_is_stored_and_what_the_epochs_of_a_run_show(tmp_path: Path, drawn, capsys) -> None:
    folder, picture = write(tmp_path / "train"), tmp_path / "show.png"
    options = ["--data.rotation", "20", "--data.flip", "--data.shift", "3", "--data.standardise", "true"]
    words = ["--ids", "17", "5", "17", "--epochs", "3", "--seed", "9", "--picture", str(picture)]
    assert main(["show", str(folder), *words, *options]) == 0
    [rows], ids = drawn, [17, 5, 17]
    stored = [row[0] for row in rows]
    assert [round(cell.image[0, 0, 0] * 255) for cell in stored] == ids
    assert [int(cell.title.split("\n")[-1]) for cell in stored] == ids
    images = torch.from_numpy(np.stack([(cell.image * 255).round() for cell in stored])).permute(0, 3, 1, 2)
    augment = Transform(rotation=20.0, flip=True, shift=3)  # standardised images are not for people
    for epoch in range(3):
        expected = augment(images.to(torch.uint8), torch.tensor(ids), seed=9, epoch=epoch)
        for n, row in enumerate(rows):
            assert row[epoch + 1].title == f"epoch {epoch}"
            np.testing.assert_array_equal(row[epoch + 1].image, expected[n].permute(1, 2, 0))
    assert imread(picture).std() > 0.05
    lines = capsys.readouterr().out.splitlines()
    names = [printable(CLASSES[label]) for label in labels_of(folder)[ids]]
    told = [
        f"{i}: {name}, azimuth {i}, place [{2 * i}, {2 * i + 1}]" for i, name in zip(ids, names, strict=True)
    ]
    assert lines == [*told, f"picture: {picture}"]


def test_options_start_from_a_preset(tmp_path: Path, drawn, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train", shape=(3, 32, 32), num=20)
    assert main(["show", "train", "--preset", "cifar10_official", "--epochs", "2"]) == 0
    assert Path("samples.png").is_file()
    assert [[cell.image.shape for cell in row] for row in drawn[0]] == [[(32, 32, 3)] + [(24, 24, 3)] * 2] * 4


def test_without_options_nothing_is_changed(tmp_path: Path, drawn) -> None:
    write(tmp_path / "train")
    assert (
        main(["show", str(tmp_path / "train"), "--picture", str(tmp_path / "show.png"), "--epochs", "1"]) == 0
    )
    for stored, first in drawn[0]:
        np.testing.assert_allclose(first.image, stored.image, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--ids", "60"], 1, "has no sample 60; give --ids of 0 to 59"),
        (["--ids", "-1"], 1, "has no sample -1; give --ids of 0 to 59"),
        (["--epochs", "99"], 1, "epochs=99 and 0 ids: a picture has up to 64 rows and columns; give fewer"),
        (["--preset", "mnist"], 2, "preset='mnist': is not a preset; choose one of"),
        (["--data.rotation", "200"], 2, "data.rotation=200.0: must be at least 0 and at most 180"),
        (["--data.normalise-mean", "0.1"], 2, "must be one number a channel, model.in_channels=3"),
        (["--data.crop", "22"], 1, "smaller than the crop 22; lower data.crop"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, capsys, words, status: int, message: str) -> None:
    write(tmp_path / "train")
    assert main(["show", str(tmp_path / "train"), *words]) == status
    error = capsys.readouterr().err
    assert message in error
    assert all(line.startswith("error: ") for line in error.splitlines())


def test_a_split_that_is_not_there(tmp_path: Path, capsys) -> None:
    assert main(["show", str(tmp_path / "train")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---- the figure


@pytest.mark.parametrize("shape", [(1, 9, 9), (2, 5, 30), (3, 40, 8)])
def test_titles_do_not_overlap(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    image = image_of(rng.integers(0, 256, shape, dtype=np.uint8))
    titles = [titled(np.array(label), 10**6 + label, ["one", "W" * 40, "$", "a+b"]) for label in range(4)]
    figure = draw_cells(in_rows([Cell(image, title) for title in titles * 7]), "a heading")
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.findobj(Axes) if axes.title.get_text()]
    assert len(boxes) == 28
    for n, box in enumerate(boxes):
        for other in boxes[n + 1 :]:
            assert (
                min(box.x1, other.x1) - max(box.x0, other.x0) <= 1 or box.y1 <= other.y0 or other.y1 <= box.y0
            )


def test_show_needs_no_torch_to_refuse() -> None:
    assert "torch" not in vars(command_show)
