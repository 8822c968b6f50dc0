"""Second names for files, with and without hard links."""

from __future__ import annotations

import errno
import os

import pytest

from horovod_transformer.system.files import link_or_copy, read_at_most


def test_a_file_without_an_end_is_too_large(tmp_path):
    (tmp_path / "ten").write_bytes(b"0123456789")
    with open(tmp_path / "ten", "rb") as file:
        assert read_at_most(file, 10) == b"0123456789"
    with open("/dev/zero", "rb") as file, pytest.raises(OSError, match="File too large"):
        read_at_most(file, 10)


def no_links(source, target):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_is_one_that_nobody_has(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 10_000)
    link_or_copy(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.samefile(source) == links
    target.unlink()
    target.write_text("another's")
    with pytest.raises(FileExistsError):
        link_or_copy(source, target)
    assert target.read_text() == "another's"


def test_other_errors_are_not_hidden(tmp_path):
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "nothing", tmp_path / "target")
    assert not (tmp_path / "target").exists()
