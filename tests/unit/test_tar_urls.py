"""`data.urls` and the rules of the reader webdataset: every refusal names the field and the remedy."""

from __future__ import annotations

import os
import re

import pytest

from capsdist.config import CapsNetConfig, Config, Data, Train, problems
from capsdist.config.tar_urls import absolute_urls, expand_urls, local_tars


def config_of(*, train: dict | None = None, model: dict | None = None, **data) -> Config:
    data = {"reader": "webdataset", "urls": "https://h/{000..003}.tar", "num_samples": 300, **data}
    return Config(data=Data(**data), train=Train(**(train or {})), model=CapsNetConfig(**(model or {})))


def test_braces():
    assert expand_urls("s3://b/{08..10}-{a,b}.tar") == [
        f"s3://b/{number}-{letter}.tar" for number in ("08", "09", "10") for letter in "ab"
    ]
    assert expand_urls("a.tar") == ["a.tar"]


def test_what_is_local_becomes_absolute(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    here = os.getcwd()
    assert absolute_urls("") == ""
    assert absolute_urls("x/{0..1}.tar") == f"{here}/x/{{0..1}}.tar"
    assert absolute_urls("~/x.tar") == "/home/me/x.tar"
    assert absolute_urls("{/a,/b}/x.tar") == "{/a,/b}/x.tar"
    for url in ("https://h/x.tar", "s3://b/x.tar", "pipe:cat x.tar"):
        assert absolute_urls(url) == url
        assert local_tars(url) == []
    assert local_tars("file:///a/{0,1}.tar") == ["/a/0.tar", "/a/1.tar"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": ""},
        {"urls": "x/{0..9}.tar", "classes": ("a", "b")},
        {"urls": "s3://b/x.tar"},
        {"train": {"checkpoint_every_steps": 6}},
    ],
)
def test_valid(fields):
    assert problems(config_of(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"urls": ""}, "data.urls", "must name the tar files"),
        ({"urls": "pipe:curl https://h/x.tar"}, "data.urls", "would run a command"),
        ({"urls": "PIPE:curl https://h/x.tar"}, "data.urls", "would run a command"),
        ({"urls": "{a.tar,pipe:cat x.tar}"}, "data.urls", "would run a command"),
        ({"urls": "gs://b/x.tar"}, "data.urls", "gs: is not read"),
        ({"urls": "https://"}, "data.urls", "does not name a file"),
        ({"urls": "https://x.tar"}, "data.urls", "does not name a file"),
        ({"urls": "https:h/x.tar"}, "data.urls", "does not name a file"),
        ({"urls": "file://x/y.tar"}, "data.urls", "does not name a file"),
        ({"urls": "HTTPS://h/x.tar"}, "data.urls", "HTTPS: is not read"),
        ({"urls": "https://me:secret@h/x.tar"}, "data.urls", "credentials do not belong in a URL"),
        ({"urls": "https://h/[0-9].tar"}, "data.urls", "has brackets"),
        ({"urls": "x.tar.gz"}, "data.urls", "does not end with .tar"),
        ({"urls": "{0..9.tar"}, "data.urls", "brace too many"),
        ({"urls": "{0..9999999}.tar"}, "data.urls", "more than 1,048,576 files"),
        ({"train": {"num_workers": 5}}, "data.urls", "names 4 tar files for train.num_workers=5"),
        ({"num_samples": None}, "data.num_samples", "must be given"),
        ({"num_samples": 0}, "data.num_samples", "at least 1"),
        ({"num_samples": 100}, "train.global_batch_size", "more than data.num_samples=100"),
        ({"classes": tuple("abcdefghijk")}, "data.classes", "more than model.num_classes=10"),
        ({"model": {"from_data": True}}, "model.from_data", "needs an index"),
        ({"model": {"in_channels": 2}}, "model.in_channels", "1 .grey. or 3"),
        ({"crop": 28}, "data.crop", "has no room"),
        ({"last_batch": "carry"}, "data.last_batch", "joins epochs"),
        ({"train": {"checkpoint_every_steps": 4}}, "train.checkpoint_every_steps", "multiple of 3"),
        ({"name": "", "train": {"validate_every_steps": 3}}, "train.validate_every_steps", "data.name"),
        ({"reader": "packed"}, "data.urls", "no effect on the reader packed"),
    ],
)
def test_refused(fields, field, text):
    found = [str(problem) for problem in problems(config_of(**fields)) if problem.field == field]
    assert len(found) == 1
    assert re.search(text, found[0])
    assert "secret" not in found[0]


def test_the_empty_name_is_only_for_the_reader_webdataset():
    assert "data.name" in {problem.field for problem in problems(Config(data=Data(name="")))}


@pytest.mark.parametrize("resident", ["auto", "never", "device", "shared"])
def test_streamed_images_are_not_kept(resident):
    found = [each for each in problems(config_of(resident=resident)) if each.field == "data.resident"]
    assert len(found) == (resident in ("device", "shared"))
    if found:
        text = f"data.resident='{resident}': is for packed splits: the reader webdataset streams its images"
        assert str(found[0]) == f"{text}; set --data.resident auto"
