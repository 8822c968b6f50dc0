"""The folder of prepared data is whole or absent, however a try ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

from horovod_transformer.books.sources import open_books
from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.prepare import prepare
from horovod_transformer.system.folders import new_folder
from tests.conftest import PATIENCE_S

# See test_workers.py.
RECORDED = "32466844913ee5e7a33b0535251548ffcd12ec91216ba2bae7a6ed8a3ce885ba"


def test_two_tries_at_once_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "v1"
    refused = pytest.raises(UserError, match=r"put here meanwhile.*\(--to\)$")
    with refused, new_folder(target, "--to") as folder:
        (folder / "slow").touch()
        target.mkdir()
        (target / "quick").touch()
    assert os.listdir(target) == ["quick"] and os.listdir(tmp_path) == ["v1"]


def test_a_failed_replacement_keeps_the_old(tmp_path: Path) -> None:
    target = tmp_path / "v1"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(ZeroDivisionError), new_folder(target, "data.data_dir", replace=True):
        raise ZeroDivisionError
    assert os.listdir(target) == ["old"] and os.listdir(tmp_path) == ["v1"]
    before = signal.getsignal(signal.SIGTERM)
    with new_folder(target, "data.data_dir", replace=True) as folder:
        (folder / "new").touch()
        assert os.listdir(target) == ["old"]
    assert os.listdir(target) == ["new"] and os.listdir(tmp_path) == ["v1"]
    assert signal.getsignal(signal.SIGTERM) is before


# Real processes that end badly


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 MB of books: some seconds of tokenizing."""
    folder = tmp_path_factory.mktemp("shelf")
    plays = [book.text for book in open_books("sample")]
    for number in range(5):
        text = "".join(f"{number} {place}\n{play}" for place, play in enumerate(plays))
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def command_line(source: Path | str, data_dir: Path) -> list[str]:
    return [
        *("-m", "horovod_transformer", "prepare", "--data.source", str(source)),
        *("--data.data_dir", str(data_dir), "--model.max_seq_len", "16"),
    ]


def prepare_until_signalled(
    command: list[str], root: Path, folder: Path, number: signal.Signals
) -> tuple[subprocess.Popen, bytes]:
    """Start `prepare`, send it a signal when it has finished a unit, and wait for its end."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not list(folder.glob("v1.units/*.arrow")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    return process, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=str
)
def test_what_is_killed_midway_never_looks_finished(
    number: signal.Signals, code: int, shelf: Path, root: Path, tmp_path: Path, run_python
) -> None:
    target = tmp_path / "v1"
    for _ in range(3):
        process, errors = prepare_until_signalled(command_line(shelf, target), root, tmp_path, number)
        if process.returncode:
            break
        # Rarely Python drops an interrupt, in a finalizer say, and the work was done before a second one.
        shutil.rmtree(target)
    assert process.returncode == code
    assert b"Traceback" not in errors
    assert not target.exists()
    assert set(os.listdir(tmp_path)) <= {"v1.units", ".v1.lock"}
    done = run_python(*command_line(shelf, target))
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["v1"]
    assert len(datasets.load_from_disk(str(target))["train"]) > 1000


FULL_DISK = """
import resource, sys
limit, unit_bytes, tokenizer, vocab_size, target = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.config import config_from_dict
from horovod_transformer.prepare.prepare import prepare
data = {"source": "sample", "data_dir": target, "tokenizer": tokenizer}
model = {"vocab_size": int(vocab_size), "max_seq_len": 512}
config = config_from_dict({"data": data, "model": model}, "test")
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(run_command(lambda arguments: prepare(config, workers=2, unit_bytes=unit_bytes) and 0))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "limit", "unit_bytes", "tokenizer"),
    [
        ("reading", 1500, 5_000_000, "bpe"),
        ("training", 6_000, 900_000, "bpe"),
        ("tokenizing", 1 << 20, 8_000_000, "gpt2"),
        ("assembling", 1 << 20, 900_000, "gpt2"),
    ],
)
def test_a_full_disk_is_one_line_and_keeps_what_is_finished(
    phase: str, limit: int, unit_bytes: int, tokenizer: str, tmp_path: Path, run_python
) -> None:
    # No file may pass a size: writing fails with the system's own error, as on a full disk.
    target, vocab_size = tmp_path / "v1", 50257 if tokenizer == "gpt2" else 512
    (tmp_path / "program.py").write_text(FULL_DISK)
    program = [tmp_path / "program.py", limit, unit_bytes, tokenizer, vocab_size, target]
    done = run_python(*map(str, program))
    assert done.returncode == 2, done.stderr
    assert f"error: {target}: the disk (or your quota) is full" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    finished = {path.name for path in tmp_path.glob("v1.units/*.arrow")}
    assert bool(finished) == (phase in ("training", "assembling"))
    assert not list(tmp_path.glob("v1.units/*tokenizer*"))
    # The other worker was ended within a unit: its lock and what it was writing may be there, by their names.
    assert set(os.listdir(tmp_path)) <= {"program.py", "v1.units"}
    assert len(list(tmp_path.glob("v1.units/*.tokens"))) <= len(finished)
    if phase == "assembling":
        # With room it goes on, and ends as if nothing had been.
        program[1] = 1 << 30
        done = run_python(*map(str, program))
        assert done.returncode == 0, done.stderr
        assert json.loads((target / "manifest.json").read_text())["fingerprint"] == RECORDED
        assert set(os.listdir(tmp_path)) == {"program.py", "v1"}


def test_too_small_a_disk_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    config = config_from_dict({"data": {"source": "sample", "data_dir": str(tmp_path / "v1")}}, "test")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(UserError, match=r"v1: this needs about \d+ MB, 1 MB are free; make room"):
        prepare(config, progress=False)
    assert os.listdir(tmp_path) == []
