"""A checkpoint is whole or absent, is what was written, and runs nothing."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import pickle
import resource
import signal
import time
import zipfile

import pytest
import torch

from horovod_transformer.checkpoint.format import FORMAT_VERSION, checksum, load_checkpoint, save_checkpoint
from horovod_transformer.checkpoint.manager import CheckpointManager
from horovod_transformer.errors import UserError


def contents_of(update=0, size=4):
    return {
        "model": {"weight": torch.full((size,), float(update)), "half": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "avg": torch.arange(6.0).reshape(2, 3).t()}}},
        "scheduler": {"decay_updates": 10},
        "progress": {"update": update, "best": math.inf, "nothing": torch.zeros(0), "pair": (1, 2.5)},
        "config": {"model": {"d_model": 4}, "data": {"source": ["né", None, True]}},
        "tokenizer": None,
    }


def assert_refused(path, match):
    with pytest.raises(UserError, match=match) as told:
        load_checkpoint(path)
    assert str(told.value).startswith(f"{path}: ")
    assert "\n" not in str(told.value)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "folder" / "one.pt"
    save_checkpoint(path, contents_of(7))
    return path


def test_what_was_written_is_read(written):
    read = load_checkpoint(written)
    assert read.pop("format_version") == FORMAT_VERSION
    assert checksum(read) == checksum(contents_of(7))
    assert read["optimizer"]["state"][0]["avg"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read["progress"]["best"] == math.inf
    assert [path.name for path in written.parent.iterdir()] == ["one.pt"]


@pytest.mark.parametrize("kept", [0, 1, 50, 1000, -1])
def test_a_truncated_file_is_refused(written, kept):
    written.write_bytes(written.read_bytes()[:kept])
    assert_refused(written, "is not a readable checkpoint")


def test_a_flipped_bit_anywhere_is_refused_or_harmless(written):
    whole = written.read_bytes()
    before = checksum(load_checkpoint(written))
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 300)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        written.write_bytes(damaged)
        try:
            # The zip format has bytes that nobody reads: padding, dates.
            assert checksum(load_checkpoint(written)) == before
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 30


def test_a_changed_weight_is_refused(written):
    # A well-formed file of other content, as a bad disk or another hand makes it.
    contents = torch.load(written, weights_only=True)
    contents["model"]["weight"][2] = torch.nextafter(contents["model"]["weight"][2], torch.tensor(9.0))
    torch.save(contents, written)
    assert_refused(written, "its checksum does not match")


class Trap:
    """What a hostile checkpoint holds: its unpickling makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["torch", "pickle", "legacy"])
def test_no_code_of_a_file_is_run(tmp_path, form):
    path, target = tmp_path / "evil.pt", tmp_path / "was-here"
    contents = {**contents_of(), "format_version": 1, "model": Trap(target)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=form == "torch")
    assert_refused(path, "is not a readable checkpoint")
    assert not target.exists()
    with open(path, "rb") as file:  # the trap does work
        torch.load(file, weights_only=False) if form != "pickle" else pickle.load(file)
    assert target.exists()


def test_foreign_and_newer_and_incomplete_files_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    assert_refused(path, "no such checkpoint file")
    path.write_bytes(b"")
    assert_refused(path, "is not a readable checkpoint")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "hello")
    assert_refused(path, "is not a readable checkpoint")
    for foreign in ({"state_dict": {}}, [1], torch.ones(2)):
        torch.save(foreign, path)
        assert_refused(path, "is a PyTorch file but not a checkpoint of this program")
    save_checkpoint(path, {**contents_of(), "format_version": FORMAT_VERSION + 1})
    assert_refused(path, f"has checkpoint format {FORMAT_VERSION + 1}, newer than the {FORMAT_VERSION}")
    save_checkpoint(path, {key: value for key, value in contents_of().items() if key != "optimizer"})
    assert_refused(path, "lacks optimizer")
    for key in ("progress", "scheduler"):
        save_checkpoint(path, {**contents_of(), key: None})
        assert_refused(path, "its record of progress is not of this program's making")


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_a_path_need_not_be_utf_8(tmp_path, with_optimizer):
    folder = tmp_path / "b\udcff"
    folder.mkdir()
    save_checkpoint(folder / "last.pt", contents_of())
    assert load_checkpoint(folder / "last.pt", with_optimizer=with_optimizer)["progress"]


def test_a_folder_is_no_checkpoint(tmp_path):
    assert_refused(tmp_path, "is a folder; name a file")


def test_the_checksum_sees_every_part():
    seen = {checksum(contents_of())}
    changes = [
        ("model", {"weight": torch.zeros(4), "half": torch.ones(2)}),  # another type
        ("model", {"half": torch.ones(2, dtype=torch.bfloat16), "weight": torch.zeros(4)}),  # another order
        (
            "model",
            {"weight": torch.zeros(2, 2), "half": torch.ones(2, dtype=torch.bfloat16)},
        ),  # another shape
        ("progress", {"update": 0.0}),
        ("progress", {"update": 0}),
        ("progress", {"update": False}),
        ("progress", {"update": "0"}),
        ("tokenizer", {}),
        ("tokenizer", []),
    ]
    for key, value in changes:
        seen.add(checksum({**contents_of(), key: value}))
    assert len(seen) == 1 + len(changes)


def write_for_ever(path, saved):
    # A forked process must not use the threads its parent had.
    torch.set_num_threads(1)
    update = 0
    while True:
        update += 1
        save_checkpoint(path, contents_of(update, size=500_000))
        saved.value = update


def test_a_kill_during_a_write_leaves_the_file_before(tmp_path):
    path = tmp_path / "last.pt"
    killed_in_mid_write, processes = 0, multiprocessing.get_context("fork")
    for attempt in range(6):
        # Without a lock: a writer that is killed while it holds one would keep us waiting for ever.
        saved = processes.Value("i", 0, lock=False)
        writer = processes.Process(target=write_for_ever, args=(path, saved), daemon=True)
        writer.start()
        limit = time.monotonic() + 300
        while time.monotonic() < limit and (saved.value < 2 or not list(tmp_path.glob(".last.pt*"))):
            time.sleep(0.0002)
        time.sleep(attempt * 0.001)
        writer.kill()
        writer.join()
        killed_in_mid_write += bool(list(tmp_path.glob(".last.pt*")))
        read = load_checkpoint(path)
        assert read["progress"]["update"] in (saved.value, saved.value + 1)  # renamed, but not yet told
        assert set(read["model"]["weight"].tolist()) == {float(read["progress"]["update"])}
        CheckpointManager(tmp_path).clear_leftovers()
        assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert killed_in_mid_write >= 1


@pytest.fixture
def file_size_limit():
    """No file may grow beyond 200 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_failed_write_leaves_the_files_before_and_nothing_else(tmp_path, file_size_limit):
    folder = CheckpointManager(tmp_path)
    assert folder.save(contents_of(1), 1, periodic=True, best=True) is None
    assert folder.save(contents_of(2, size=100_000), 2, periodic=True, best=True) is None
    # Told by the next call, once; the writer continues.
    failure = folder.save(contents_of(3), 3, periodic=False, best=True)
    assert isinstance(failure, OSError) and failure.errno == errno.EFBIG
    assert folder.wait() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best_model.pt", "last.pt", "update_00000001.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["progress"]["update"] == 1
    assert load_checkpoint(tmp_path / "best_model.pt")["progress"]["update"] == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_operating_systems_own_reason_is_kept(tmp_path):
    # Writing to /dev/full fails as a full disk does; torch would make a riddle of it.
    from horovod_transformer.checkpoint.format import _save_to

    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError) as told:
        _save_to(file, {"weight": torch.ones(100_000)})
    assert told.value.errno == errno.ENOSPC


def test_tensors_go_where_they_are_wanted(written):
    on_meta = load_checkpoint(written, map_location="meta")
    assert on_meta["model"]["weight"].device.type == "meta"
