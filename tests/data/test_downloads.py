"""Original files that are fetched: from a real web server, whole or not at all, and nowhere else."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from test_originals import write_idx_set

from capsdist.data.sets.idx import FILES, load_or_download
from capsdist.data.sets.originals import Original, content, download
from capsdist.errors import DataError


@pytest.fixture
def server(tmp_path):
    """A web server on a port of the system's choice: its address and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", folder
        served.shutdown()
        thread.join()


def test_files_are_fetched_from_the_first_mirror_that_has_them(tmp_path, server):
    """The first mirror answers 404, the second holds a damaged file, the third the right ones."""
    url, folder = server
    checksums, held = write_idx_set(folder / "right")
    (folder / "wrong").mkdir()
    (folder / "wrong" / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    mirrors = [f"{url}/absent", f"{url}/wrong", f"{url}/right"]
    target = tmp_path / "originals"
    splits = load_or_download(None, checksums, mirrors, target, command="pack")
    assert np.array_equal(splits["train"][0][:, 0], held["train"][0])
    assert sorted(path.name for path in target.iterdir()) == sorted(f"{name}.gz" for name in checksums)


def test_what_is_there_is_not_fetched_again(tmp_path, server, capsys):
    url, folder = server
    checksums, _ = write_idx_set(folder)
    load_or_download(None, checksums, [url], tmp_path / "originals", command="pack")
    assert capsys.readouterr().out.count("downloading") == 4
    load_or_download(None, checksums, ["http://127.0.0.1:9"], tmp_path / "originals", command="pack")
    assert "downloading" not in capsys.readouterr().out


def test_no_mirror_works(tmp_path, server):
    url, _ = server
    checksums = {name: "" for names in FILES.values() for name in names}
    mirrors = [url, "http://no-such-host.invalid"]
    with pytest.raises(DataError) as caught:
        load_or_download(None, checksums, mirrors, tmp_path / "o", command="python data_prep/pack_mnist.py")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cannot download train-images-idx3-ubyte.gz (127.0.0.1:")
    assert "no-such-host.invalid: " in message
    assert "t10k-labels-idx1-ubyte.gz" in message
    assert message.endswith("then run: python data_prep/pack_mnist.py --source FOLDER")
    assert not list((tmp_path / "o").iterdir())


def test_a_damaged_file_of_an_earlier_download_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"half")
    original = Original("file", "0" * 64)
    with pytest.raises(DataError, match=r"file: sha256 of its content is .*; get the file again"):
        download([], tmp_path / "file", lambda path: content(path, original), manual="")


def test_nothing_that_lies_beside_it_is_written_to(tmp_path, server):
    """A name that can be guessed may be a link that somebody has left."""
    url, folder = server
    (folder / "file").write_bytes(b"the original")
    target, kept = tmp_path / "originals" / "file", tmp_path / "kept"
    target.parent.mkdir()
    kept.write_bytes(b"kept")
    (target.parent / "file.part").symlink_to(kept)
    os.mkfifo(target.parent / "other.part")
    assert download([f"{url}/file"], target, Path.read_bytes, manual="") == target
    assert (target.read_bytes(), kept.read_bytes()) == (b"the original", b"kept")
    assert {path.name for path in target.parent.iterdir()} == {"file", "file.part", "other.part"}


def test_a_download_is_on_disk_before_it_has_its_name(tmp_path, server, flushed):
    url, folder = server
    (folder / "file").write_bytes(b"the original")
    target = tmp_path / "originals" / "file"
    seen = flushed(target)
    download([f"{url}/file"], target, Path.read_bytes, manual="")
    assert seen == [("file", False), ("originals", True)]


def test_what_a_killed_download_has_left_goes(tmp_path, server):
    url, folder = server
    (folder / "file").write_bytes(b"the original")
    left = tmp_path / "capsdist-abcdefgh.tmp"
    left.mkdir()
    (left / "file").write_bytes(b"half")
    download([f"{url}/file"], tmp_path / "file", Path.read_bytes, manual="")
    assert not left.exists()
