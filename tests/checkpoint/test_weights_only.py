"""Reading a checkpoint without its optimizer: less is read, and what is read is checked all the same."""

from __future__ import annotations

import zipfile

import pytest
import torch

from horovod_transformer.checkpoint import format as checkpoint_format
from horovod_transformer.checkpoint.format import checksum, load_checkpoint, save_checkpoint
from horovod_transformer.errors import UserError


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of random weights and random optimizer state, as large as several pages each."""
    contents = {
        "model": {"a": torch.randn(200, 300), "b": torch.randn(())},
        "optimizer": {"state": {0: {"exp_avg": torch.randn(200, 301)}}},
        "scheduler": {},
        "progress": {"update": 3},
        "config": {},
        "tokenizer": None,
    }
    save_checkpoint(tmp_path / "c.pt", contents)
    return tmp_path / "c.pt", contents


def flip(path, tensor):
    """Change one bit of a tensor in the file."""
    data = bytearray(path.read_bytes())
    place = data.index(tensor.numpy().tobytes())
    data[place + tensor.nbytes // 2] ^= 1
    path.write_bytes(data)


def test_everything_but_the_optimizer(saved):
    path, contents = saved
    loaded = load_checkpoint(path, with_optimizer=False)
    assert set(loaded) == {"format_version", *contents} - {"optimizer"}
    assert all(torch.equal(loaded["model"][key], contents["model"][key]) for key in "ab")
    assert loaded["progress"] == {"update": 3}


def test_damage_is_found_where_it_matters(saved):
    path, contents = saved
    flip(path, contents["optimizer"]["state"][0]["exp_avg"])
    load_checkpoint(path, with_optimizer=False)
    with pytest.raises(UserError, match="checksum does not match"):
        load_checkpoint(path)
    flip(path, contents["model"]["a"])
    with pytest.raises(UserError, match="checksum does not match"):
        load_checkpoint(path, with_optimizer=False)


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_without_the_weights_own_checksum_a_file_is_refused(saved, with_optimizer):
    path, contents = saved
    whole = {"format_version": 1, **contents}
    whole["checksum"] = checksum(whole)
    torch.save(whole, path)
    with pytest.raises(UserError, match="lacks checksum_without_optimizer; it is damaged"):
        load_checkpoint(path, with_optimizer=with_optimizer)


def test_the_file_may_go_while_the_weights_are_in_use(saved):
    path, contents = saved
    loaded = load_checkpoint(path, with_optimizer=False)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded["model"]["a"], contents["model"]["a"])


def test_pages_are_given_back_and_nothing_is_lost(saved, monkeypatch):
    path, contents = saved
    given_back = []
    original = checkpoint_format._forget_pages
    monkeypatch.setattr(
        checkpoint_format, "_forget_pages", lambda tensor: (original(tensor), given_back.append(tensor))
    )
    loaded = load_checkpoint(path, with_optimizer=False)
    assert len(given_back) == 2
    assert torch.equal(given_back[0], loaded["model"]["a"])  # read again from the file


def test_truncated_and_crafted_files(saved, tmp_path):
    path, contents = saved
    whole = path.read_bytes()
    for part in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:part])
        with pytest.raises(UserError):
            load_checkpoint(path, with_optimizer=False)
    # One stored number that claims to be a billion.
    crafted = {"format_version": 1, **contents, "model": {"a": torch.zeros(1).expand(10**9)}}
    crafted["checksum"] = crafted["checksum_without_optimizer"] = "0" * 64
    torch.save(crafted, path)
    with pytest.raises(UserError, match="holds what no checkpoint"):
        load_checkpoint(path, with_optimizer=False)
    # Tensors cut off in mid-file, the archive's list of contents whole.
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "short.pt", "w") as short:
        for entry in archive.infolist():
            data = archive.read(entry)
            short.writestr(entry.filename, data[:64] if len(data) == 200 * 300 * 4 else data)
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "short.pt", with_optimizer=False)
