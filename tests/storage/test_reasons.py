"""Why S3 refused a request, and whose variable to set: by where the keys come from."""

from __future__ import annotations

import botocore.exceptions as boto
import pytest

from capsdist.storage.reasons import explain

NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def answer(code: str) -> boto.ClientError:
    """The server's refusal."""
    return boto.ClientError({"Error": {"Code": code}}, "ListObjectsV2")


CODES = ["SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "ExpiredToken", "InvalidToken"]


@pytest.mark.parametrize("code", CODES)
def test_keys_of_a_profile_are_corrected_there(monkeypatch, code):
    monkeypatch.setenv("AWS_PROFILE", "work")
    reason = explain(answer(code))
    assert "profile 'work'" in reason.remedy
    assert not any(name in reason.remedy for name in NAMES[:3])
    assert not reason.transient


@pytest.mark.parametrize("code", CODES)
def test_a_session_token_is_named_where_one_is_set(monkeypatch, code):
    monkeypatch.setenv("AWS_PROFILE", "ignored")  # keys in the environment win
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "K")
    without = explain(answer(code)).remedy
    monkeypatch.setenv("AWS_SESSION_TOKEN", "PLANTED")
    remedy = explain(answer(code)).remedy
    assert "AWS_SESSION_TOKEN" in remedy
    assert "PLANTED" not in remedy
    assert ("AWS_SESSION_TOKEN" in without) == (code in ("ExpiredToken", "InvalidToken"))
    assert "AWS_PROFILE" not in remedy


def test_a_temporary_key_without_its_token(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE")
    assert "AWS_SESSION_TOKEN" in explain(answer("InvalidAccessKeyId")).remedy


def test_keys_from_neither():
    assert "~/.aws/credentials" in explain(answer("SignatureDoesNotMatch")).remedy


def test_a_profile_that_is_not_there():
    reason = explain(boto.ProfileNotFound(profile="wrok"))
    assert "wrok" in reason.text
    assert (reason.remedy, reason.transient) == ("correct or unset AWS_PROFILE", False)


def test_a_login_that_has_expired():
    assert "aws sso login" in explain(boto.UnauthorizedSSOTokenError()).remedy


def test_a_file_that_is_not_a_configuration():
    reason = explain(boto.ConfigParseError(path="/home/me/.aws/config"))
    assert "/home/me/.aws/config" in reason.text
    assert not reason.transient


def test_other_reasons_keep_their_remedy():
    assert explain(answer("NoSuchBucket")).remedy == "create it, or correct its name"
