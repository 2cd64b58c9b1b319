"""The secret key is written nowhere: not by packing, not by reading, not by any error, not in a log."""

from __future__ import annotations

import base64
import gzip
import logging
import pickle
import traceback
import zipfile
from pathlib import Path

import pytest
from places import Place
from planted import holding
from sets import random_set

from capsdist.data import TrainStream, check_split, verify_split
from capsdist.errors import CapsdistError
from capsdist.storage import ObjectFolder, check_storage

pytestmark = pytest.mark.s3
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYplantedKEY"


def spell(folder: Path, form: str) -> None:
    """Write the secret below `folder` as a careless program might."""
    plain = f"key = {SECRET}\n".encode()
    folder.mkdir(parents=True)
    match form:
        case "plain":
            (folder / "log").write_bytes(plain)
        case "url":
            (folder / "log").write_text("s3://K:wJalrXUtnFEMI%2FK7MDENG%2BbPxRfiCYplantedKEY@bucket")
        case "utf-16":
            (folder / "log").write_bytes(plain.decode().encode("utf-16"))
        case "gzip":
            (folder / "log.gz").write_bytes(gzip.compress(plain))
        case "zip":
            with zipfile.ZipFile(folder / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("data.pkl", pickle.dumps({"secret": SECRET}))
        case _:
            (folder / "log").write_bytes(base64.b64encode(b"x" * int(form[-1]) + plain))


@pytest.mark.parametrize(
    "form", ["plain", "url", "utf-16", "gzip", "zip", "base64 0", "base64 1", "base64 2"]
)
def test_the_search_finds_a_planted_secret(tmp_path, form):
    """Mutant: what the tests below do not find would be found."""
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "log").write_text("nothing here")
    spell(tmp_path / "run" / "deep", form)
    assert len(holding(SECRET, [tmp_path])) == 1
    assert holding(SECRET, [tmp_path / "clean"]) == []


def test_the_search_looks_into_objects():
    assert holding(SECRET, [], {"a": b"clean", "b": SECRET.encode()}) == ["b"]


def test_nothing_about_data_holds_the_secret(place: Place, tmp_path, monkeypatch, caplog, capfd):
    """Pack, check, train, verify, and every kind of failure, with the most talkative logging there is."""
    caplog.set_level(logging.DEBUG)
    secret = place.server.full.secret_key
    index = random_set(0).write(place.url)
    check_storage(place.url)
    check_split(place.url)
    stream = TrainStream(place.url, seed=0, global_batch_size=10, lanes=2)
    list(stream.epoch(0))
    verify_split(place.url)
    monkeypatch.setenv("CAPSDIST_S3_DEADLINE_S", "0.5")
    failures = []
    for name, value in (("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_ENDPOINT_URL", "http://127.0.0.1:9")):
        monkeypatch.setenv(name, value)
        for call in (check_split, random_set(1).write, ObjectFolder(place.url).read):
            with pytest.raises(CapsdistError) as caught:
                call(place.url)
            failures.append("".join(traceback.format_exception(caught.value)))
    written = tmp_path / "written"
    written.mkdir()
    (written / "log").write_text(caplog.text)
    (written / "streams").write_text("".join(capfd.readouterr()))
    (written / "failures").write_text("\n".join(failures))
    (written / "index.json").write_text(index.to_json())
    (written / "objects.pkl").write_bytes(pickle.dumps((ObjectFolder(place.url), stream.position(0, 1))))
    assert "capsdist-tests" in caplog.text  # the log does hold what was done
    assert any(place.cache.iterdir())
    assert holding(secret, [tmp_path], place.objects()) == []
