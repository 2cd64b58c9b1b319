"""The reader of foreign tar files: its batches, what it refuses, and what it never looks into."""

from __future__ import annotations

import functools
import gzip
import http.server
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from foreign_tars import image_file, sample_of, write_tar, write_tars

from capsdist.data.format.position import Position
from capsdist.data.stream import Stream
from capsdist.data.web_stream import WebData, WebStream
from capsdist.errors import DataError

PIXELS = np.zeros((9, 9, 1), np.uint8)


def web_data(*urls: Path | str, num_samples: int = 26, num_labels: int = 1) -> WebData:
    classes = ("bar", "dot", "ring")
    return WebData(tuple(map(str, urls)), num_samples, (1, 9, 9), classes, num_labels)


def stream_of(data: WebData, **options) -> WebStream:
    return WebStream(data, **{"seed": 3, "global_batch_size": 8, "window": 7, **options})


def batches(data: WebData, epoch: int = 0, **options) -> list:
    return list(stream_of(data, **options).epoch(epoch))


def test_an_epoch_of_one_rank_has_every_image_with_its_label(tmp_path):
    _, images, labels = write_tars(tmp_path, 26)
    data = web_data(*sorted(tmp_path.glob("*.tar")))
    found = batches(data)
    assert [batch.num_global for batch in found] == [8, 8, 8, 2]
    own = [batch.weights > 0 for batch in found]
    shown = np.concatenate([batch.images[real].numpy() for batch, real in zip(found, own, strict=True)])
    given = np.concatenate([batch.labels[real].numpy() for batch, real in zip(found, own, strict=True)])
    numbers = shown[:, 0, 0, 0]
    assert sorted(numbers) == list(range(26))
    assert list(numbers) != list(range(26))
    np.testing.assert_array_equal(shown, images.transpose(0, 3, 1, 2)[numbers])
    np.testing.assert_array_equal(given, labels[numbers])
    assert [i for batch in found for i in batch.sample_ids[batch.weights > 0].tolist()] == list(range(26))


def test_epochs_differ_and_repeat(tmp_path):
    write_tars(tmp_path, 26)
    data = web_data(*sorted(tmp_path.glob("*.tar")))

    def order(epoch: int, **options) -> list[int]:
        return [int(each[0, 0, 0]) for batch in batches(data, epoch, **options) for each in batch.images]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=4)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("num", [26, 25, 17])
def test_ranks_take_equal_steps_whatever_their_files_hold(tmp_path, world_size, num):
    write_tars(tmp_path / "a", 7, tars=2)
    write_tars(tmp_path / "b", 30, tars=2)
    data = web_data(*sorted(tmp_path.glob("*/*.tar")), num_samples=num)
    ranks = [batches(data, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(found) for found in ranks} == {-(-num // 8)}
    for step in zip(*ranks, strict=True):
        assert len({batch.images.shape for batch in step}) == 1
        assert sum(int(batch.weights.sum()) for batch in step) == step[0].num_global
    ids = [i for found in ranks for batch in found for i in batch.sample_ids[batch.weights > 0].tolist()]
    assert sorted(ids) == list(range(num))


def test_partners_are_the_next_samples_of_the_rank(tmp_path):
    write_tars(tmp_path, 26)
    data = web_data(*sorted(tmp_path.glob("*.tar")))
    for batch in batches(data, partners=True):
        real = int(batch.weights.sum())
        assert batch.partner is not None
        for name in ("images", "labels", "sample_ids"):
            own, other = getattr(batch, name)[:real], getattr(batch.partner, name)[:real]
            np.testing.assert_array_equal(other, own.roll(-1, 0))


def test_images_of_any_size_and_kind_become_the_size_of_the_network(tmp_path):
    members = []
    for number, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP")):
        content = image_file(np.full((20 + number, 31, 3), 60 * number, np.uint8), kind)
        members += [(f"{number}.{kind.lower()}", content), (f"{number}.cls", b"1")]
    tar = write_tar(tmp_path / "x.tar", members)
    data = WebData((str(tar),), 4, (3, 8, 12), ("a", "b"))
    (batch,) = batches(data, window=1)
    assert batch.images.shape == (4, 3, 8, 12)
    assert (np.abs(batch.images.float().mean((1, 2, 3)).numpy() - [0, 60, 120, 180]) < 3).all()


def test_several_labels(tmp_path):
    image = image_file(PIXELS)
    labels = (("cls", b"2 0"), ("json", b"[1]"), ("json", b'{"labels": [0, 1]}'), ("cls", b"1,2"))
    members = [m for i, (k, text) in enumerate(labels) for m in ((f"{i}.png", image), (f"{i}.{k}", text))]
    data = web_data(write_tar(tmp_path / "x.tar", members), num_samples=4, num_labels=2)
    (batch,) = batches(data, window=1)
    assert batch.labels.tolist() == [[2, 0], [1, -1], [0, 1], [1, 2]]


class _Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_members_that_could_run_code_are_never_decoded(tmp_path):
    trap = pickle.dumps(_Trap(tmp_path / "sprung"))
    suffixes = ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "ten", "msg", "mp", "gz", "cls.pyd")
    members = [*sample_of("0", PIXELS, 1).items(), *((f"0.{suffix}", trap) for suffix in suffixes)]
    data = web_data(write_tar(tmp_path / "x.tar", members), num_samples=2)
    (batch,) = batches(data)
    assert batch.labels.tolist() == [1, 1]
    assert not (tmp_path / "sprung").exists()


def test_the_environment_cannot_make_it_run_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}=pipe:touch {tmp_path}/ran #")
    write_tars(tmp_path, 4, tars=1)
    batches(web_data(tmp_path / "0.tar", num_samples=4))
    with pytest.raises(DataError, match=r"correct data\.urls"):
        batches(web_data(f"pipe:touch {tmp_path}/ran", num_samples=4))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"0.png": image_file(PIXELS)}, r"x.tar: 0 has no label; add a member .cls or .json"),
        ({"0.cls": b"1"}, r"x.tar: 0 has no image; those of jpg, jpeg, png"),
        (
            {"0.png": image_file(PIXELS), "0.cls": b"3"},
            r"0.cls: label 3 is not within 0 to 2; set --model.num-classes",
        ),
        ({"0.png": image_file(PIXELS), "0.cls": b"-1"}, r"0.cls: b'-1' holds no label"),
        ({"0.png": image_file(PIXELS), "0.cls": b"1 2"}, r"0.cls: \[1, 2\] must be 1 label"),
        ({"0.png": image_file(PIXELS), "0.cls": b"dog"}, r"0.cls: b'dog' holds no label"),
        ({"0.png": image_file(PIXELS), "0.json": b"{}"}, r"0.json: b'{}' holds no label"),
        ({"0.png": image_file(PIXELS), "0.json": b"true"}, r"0.json: b'true' holds no label"),
        ({"0.png": image_file(PIXELS), "0.json": b"[" * 100_000}, r"0.json: .* holds no label"),
        ({"0.png": image_file(PIXELS)[:40], "0.cls": b"1"}, r"x.tar: 0.png: .*; repair it or leave it out"),
        ({"0.jpg": b"%!PS-Adobe-3.0 EPSF-3.0", "0.cls": b"1"}, r"0.jpg: an unknown format"),
        ({"readme.txt": b"hello"}, r"x.tar: holds no image file with a label"),
    ],
)  # fmt: skip
def test_a_faulty_sample_is_one_line(tmp_path, members, text):
    tar = write_tar(tmp_path / "x.tar", members.items())
    for read in (lambda: batches(web_data(tar)), lambda: web_data(tar).check_first()):
        with pytest.raises(DataError, match=text) as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["missing", "cut", "noise", "compressed", "twice"])
def test_a_faulty_tar_is_one_line(tmp_path, fault):
    path = tmp_path / "0.tar"
    write_tars(tmp_path, 4, tars=1)
    content = path.read_bytes()
    if fault == "twice":
        write_tar(path, [("0.cls", b"1"), ("0.cls", b"1")])
    elif fault == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"cut": content[:700], "noise": b"x" * 2048, "compressed": gzip.compress(content)}[fault]
        )
    remedy = "(correct data.urls|repair it or leave it out)"
    with pytest.raises(DataError, match=rf"{path}.*; {remedy}") as caught:
        batches(web_data(path, num_samples=4))
    assert "\n" not in str(caught.value)


def test_a_position_inside_an_epoch_is_refused(tmp_path):
    stream: Stream = stream_of(web_data(tmp_path / "0.tar"))
    for epoch, step in ((0, 0), (2, 0), (1, 4)):
        stream.check_position(Position.from_dict(stream.position(epoch, step).to_dict()))
    with pytest.raises(DataError, match=r"step 3 of 4 of epoch 1, .* resume from an older checkpoint"):
        stream.check_position(stream.position(1, 3))
    with pytest.raises(DataError, match="resumes only where an epoch ends"):
        stream.epoch(1, 3)
    with pytest.raises(DataError, match="epoch 1 has 4 steps"):
        stream.check_position(stream.position(1, 5))
    other = stream_of(web_data(tmp_path / "1.tar"))
    with pytest.raises(DataError, match=r"digest=.*continue with the data set"):
        stream.check_position(other.position(1, 0))


def test_fewer_files_than_ranks_are_refused(tmp_path):
    with pytest.raises(DataError, match="names 1 tar files for 2 workers"):
        stream_of(web_data(tmp_path / "0.tar"), world_size=2)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl, which reads https://, is not installed")
def test_tar_files_over_http(tmp_path):
    _, images, _ = write_tars(tmp_path, 12, tars=2)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            host = f"http://127.0.0.1:{server.server_port}"
            data = web_data(f"{host}/0.tar", f"{host}/1.tar", num_samples=12)
            data.check_first()
            found = np.concatenate([batch.images[batch.weights > 0].numpy() for batch in batches(data)])
            with pytest.raises(
                DataError, match=rf"{host}/2.tar: cannot be read .curl ended with status 22.; repair"
            ):
                web_data(f"{host}/2.tar").check_first()
        finally:
            server.shutdown()
            thread.join()
    np.testing.assert_array_equal(found[found[:, 0, 0, 0].argsort()], images.transpose(0, 3, 1, 2))
