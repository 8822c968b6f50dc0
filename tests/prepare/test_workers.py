"""Workers: the same bytes from any number of them, and none that outlives its parent."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from horovod_transformer.config import Config, config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.assembly import assemble, select_books
from horovod_transformer.prepare.prepare import assemble_shards, prepare, prepare_shards, settings_of
from horovod_transformer.prepare.steps import Preparation
from tests.conftest import PATIENCE_S

# What version 0.1.0 as of commit 2659593, in one process and without units, made of the 38 plays.
RECORDED = "32466844913ee5e7a33b0535251548ffcd12ec91216ba2bae7a6ed8a3ce885ba"
RECORDED_BPE = "7928e18b1dafd023f16a46c7d682678dd80c323bc428654b979792f267dcd795"


def sample(data_dir: Path, **more: Any) -> Config:
    return config_from_dict({"data": {"source": "sample", "data_dir": str(data_dir)}, **more}, "test")


def bytes_of(data_dir: Path) -> dict[str, str]:
    return {
        str(path.relative_to(data_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data_dir.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "report.json", "report.html")
    }


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plays, prepared in one unit by this process."""
    folder = tmp_path_factory.mktemp("plays")
    manifest = prepare(sample(folder / "v1"), progress=False, workers=1)
    assert manifest["fingerprint"] == RECORDED
    assert manifest["words"] == 902_300 and manifest["dropped"]["counts"]["duplicate"] == 0
    assert os.listdir(folder) == ["v1"]
    return folder / "v1"


@pytest.mark.slow
def test_a_trained_tokenizer_is_the_recorded_one(tmp_path: Path) -> None:
    config = sample(tmp_path / "v1", model={"vocab_size": 2048, "max_seq_len": 128})
    config = config.with_overrides({"data.tokenizer": "bpe"})
    manifest = prepare(config, progress=False, workers=2, unit_bytes=900_000)
    assert manifest["fingerprint"] == RECORDED_BPE
    assert os.listdir(tmp_path) == ["v1"]


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_and_units_gives_the_same_bytes(
    plays: Path, tmp_path: Path, workers: int
) -> None:
    manifest = prepare(sample(tmp_path / "v1"), progress=False, workers=workers, unit_bytes=400_000)
    assert manifest["fingerprint"] == RECORDED
    assert bytes_of(tmp_path / "v1") == bytes_of(plays)
    assert os.listdir(tmp_path) == ["v1"]


def test_any_executor_will_do(plays: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as executor:
        prepare(sample(tmp_path / "v1"), progress=False, executor=executor, unit_bytes=700_000)
    assert bytes_of(tmp_path / "v1") == bytes_of(plays)


@pytest.mark.slow
def test_dask_will_do(plays: Path, tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        client.get_executor() as executor,
    ):
        prepare(sample(tmp_path / "v1"), progress=False, executor=executor, unit_bytes=700_000)
    assert bytes_of(tmp_path / "v1") == bytes_of(plays)


def test_shares_on_several_nodes_give_the_same_bytes(plays: Path, tmp_path: Path, capsys) -> None:
    config = sample(tmp_path / "v1")
    for shard in (2, 1):
        with pytest.raises(UserError, match=r"v1\.units: \d+ of \d+ units are missing .* run --units"):
            assemble_shards(config, progress=False, unit_bytes=900_000)
        prepare_shards(config, shard, 2, workers=1, unit_bytes=900_000)
    assert "share 2 of 2: 3 units tokenized" in capsys.readouterr().out
    assemble_shards(config, progress=False, unit_bytes=900_000)
    assert bytes_of(tmp_path / "v1") == bytes_of(plays)
    assert os.listdir(tmp_path) == ["v1"]
    prepare_shards(config, 1, 2, unit_bytes=900_000)
    assert "already prepared" in capsys.readouterr().out and os.listdir(tmp_path) == ["v1"]
    # Data that are found damaged are made again the same way.
    for shard in (1, 2):
        prepare_shards(config, shard, 2, workers=1, unit_bytes=900_000, force=True)
    assemble_shards(config, progress=False, unit_bytes=900_000, force=True)
    assert bytes_of(tmp_path / "v1") == bytes_of(plays)


def test_shares_with_a_tokenizer_to_be_trained_are_done_twice(tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for n in range(6):
        (books / f"{n}.txt").write_text(f"Book {n} says that {n} and {n * 7} are numbers. " * 40)
    model = {"vocab_size": 280, "max_seq_len": 16}
    config = sample(tmp_path / "v1", model=model)
    config = config.with_overrides({"data.source": str(books), "data.tokenizer": "bpe"})
    more = {"progress": False, "unit_bytes": 3000}
    for expected in (None, dict):
        for shard in (1, 2, 3):
            prepare_shards(config, shard, 3, workers=1, **more)
        made = assemble_shards(config, **more)
        assert type(made) is (expected or type(None))
    alone = prepare(config.with_overrides({"data.data_dir": str(tmp_path / "alone")}), progress=False)
    assert made["fingerprint"] == alone["fingerprint"] and made["tokenizer"] == alone["tokenizer"]
    assert sorted(os.listdir(tmp_path)) == ["alone", "books", "v1"]


def test_a_unit_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    """Ours goes on with the others, and says so in the end rather than assembling half a corpus."""
    config = sample(tmp_path / "v1")
    work = Preparation(settings_of(config), False, 1, None, 2_000_000)
    work.folder.mkdir()
    assert work.chosen is not None
    files = work.tokenizing(work.chosen).files_of(work.shards[1])
    owner = {"job": None, "attempt": 0, "host": os.uname().nodename, "pid": os.getppid(), "token": "x"}
    owner["started"] = psutil.Process(os.getppid()).create_time()
    files.lock.write_text(json.dumps(owner))
    with pytest.raises(UserError, match="another process is at 1 of 3 units"):
        prepare(config, progress=False, workers=1, unit_bytes=2_000_000)
    assert len(list(work.folder.glob("*.arrow"))) == 2 and not (tmp_path / "v1").exists()
    files.lock.unlink()
    assert prepare(config, progress=False, workers=1, unit_bytes=2_000_000)["fingerprint"] == RECORDED


@pytest.mark.parametrize("left", [None, 1000])
def test_tokens_that_were_lost_are_named_and_made_again(tmp_path: Path, left: int | None) -> None:
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(f"Book {n} tells of {n * 7} ships. " * 400)
    config = sample(tmp_path / "v1", model={"vocab_size": 50257, "max_seq_len": 64})
    config = config.with_overrides({"data.source": str(tmp_path / "*.txt")})
    whole = prepare(
        config.with_overrides({"data.data_dir": str(tmp_path / "whole")}), progress=False, workers=1
    )
    work = Preparation(settings_of(config), False, 1, None, 8000)
    work.folder.mkdir()
    assert work.chosen is not None
    job = work.tokenizing(work.chosen)
    assert work.build(job, work.shards) == [] and len(work.shards) > 1
    selected = select_books(work.settings, work.shards, job)
    tokens = job.files_of(work.shards[1]).tokens
    if left is None:
        tokens.unlink()
    else:
        tokens.write_bytes(tokens.read_bytes()[:left])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=rf"{tokens.name}: is (gone|shorter).*; run `prep") as caught:
        assemble(tmp_path / "out", work.settings.block_size, selected, work.chosen)
    assert "\n" not in str(caught.value)
    assert not job.files_of(work.shards[1]).finished()
    assert prepare(config, progress=False, workers=1, unit_bytes=8000)["fingerprint"] == whole["fingerprint"]


def test_a_worker_does_without_torch(run_python) -> None:
    program = (
        "import sys, horovod_transformer.prepare.workers; print({'torch', 'datasets'} & set(sys.modules))"
    )
    assert run_python("-c", program).stdout == "set()\n"


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(root: Path, tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for n in range(40):
        (books / f"{n}.txt").write_text(
            f"Book {n}. " + "It was a dark and stormy night, and so on. " * 40_000
        )
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "horovod_transformer",
            "prepare",
            "--workers",
            "2",
            "--data.source",
            str(books),
        ]
        + ["--data.data_dir", str(tmp_path / "v1")],
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not list(tmp_path.glob("v1.units/*.arrow")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
