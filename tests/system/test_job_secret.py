"""The secret of a job: from the variable, or from a file that only its owner reads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from horovod_transformer.errors import UserError
from horovod_transformer.system.job_secret import VARIABLE, JobSecret, new_secret, read_secret


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


def test_a_signature_holds_for_its_texts_and_its_job_alone():
    secret = JobSecret("the same on all ranks", "slurm-7.0")
    signature = secret.sign("report", "1", "text")
    assert JobSecret("the same on all ranks", "slurm-7.0").has_signed(signature, "report", "1", "text")
    for parts in (("report", "1", "texts"), ("report", "1text"), ("report", "1", "text", ""), ()):
        assert not secret.has_signed(signature, *parts)
    assert not JobSecret("the same on all ranks", "slurm-8.0").has_signed(signature, "report", "1", "text")
    assert not JobSecret("another one altogether", "slurm-7.0").has_signed(signature, "report", "1", "text")
    for forged in (None, "", 7, "é", signature.upper(), {}):
        assert not secret.has_signed(forged, "report", "1", "text")


def test_the_variable_comes_first(home, monkeypatch):
    monkeypatch.setenv(VARIABLE, "given by the launcher")
    assert read_secret("a").sign("x") == JobSecret("given by the launcher", "a").sign("x")
    assert list(home.iterdir()) == []
    for text in ("", "a few letters"):
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(UserError, match=f"{VARIABLE} is too short") as told:
            read_secret("a")
        assert text == "" or text not in str(told.value)


def test_ranks_that_start_together_make_one_file(home):
    umask = os.umask(0)
    try:
        with ThreadPoolExecutor(8) as ranks:
            signatures = set(ranks.map(lambda _: read_secret("job").sign("x"), range(32)))
    finally:
        os.umask(umask)
    assert len(signatures) == 1
    files = [path for path in home.rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["secret"]
    assert files[0].stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_file_that_others_reach_is_refused(home, mode):
    read_secret("job")
    path = home / ".config" / "horovod_transformer" / "secret"
    path.chmod(mode)
    with pytest.raises(UserError, match="others can read or write this secret; delete it"):
        read_secret("job")


def test_what_is_no_secret_is_a_line(home, monkeypatch):
    path = home / ".config" / "horovod_transformer" / "secret"
    path.parent.mkdir(parents=True)
    for contents, told in ((b"", "too short"), (b"short\n", "too short"), (b"\xff" * 64, "no text")):
        path.write_bytes(contents)
        path.chmod(0o600)
        with pytest.raises(UserError, match=told):
            read_secret("job")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"set {VARIABLE} on every rank"):
        read_secret("job")
    monkeypatch.setenv("HOME", str(home / "file" / "below"))
    (home / "file").write_text("")
    with pytest.raises(UserError, match=f"set {VARIABLE} on every rank"):
        read_secret("job")


def test_secrets_are_new_each_time():
    assert len({new_secret() for _ in range(100)}) == 100 and len(new_secret()) == 64
