"""Paths as users give them: what cannot be one is a line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import readable, user_path


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x", "k") == tmp_path / "x"
    assert user_path("a/~b", "k") == Path("a/~b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("~nosuchuser/x", "~nosuchuser/x: there is no such user"),
        ("x" * 5000, "name too long"),
        ("é" * 200, "name too long"),
        ("a\0b", "NUL"),
    ],
)
def test_what_is_no_path_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        user_path(text, "data.data_dir")
    message = str(caught.value)
    assert said.lower() in message.lower() and message.endswith("(data.data_dir)") and len(message) < 400


@pytest.mark.skipif(sys.platform != "linux", reason="changes this process's user for a moment")
def test_a_folder_on_the_way_that_may_not_be_looked_into(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "in").mkdir(parents=True)
    closed.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(UserError, match=r"cannot be looked at: Permission denied \(data.data_dir\)"):
            user_path(closed / "in", "data.data_dir")
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o700)


def test_names_of_old_encodings_and_control_characters_can_be_printed_and_kept() -> None:
    assert readable(os.fsdecode(b"caf\xe9.txt")) == "caf\\xe9.txt"
    assert readable("two\nlines\x1b[31m") == "two\\nlines\\x1b[31m"
    assert readable("Straße") == "Straße"
    readable("lone \ud800").encode()
