"""The doctor on a machine that lacks the thing."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from horovod_transformer.commands.doctor_checks import CheckContext
from horovod_transformer.commands.doctor_machine import (
    check_compiler,
    check_home,
    check_horovod,
    check_host_name,
    check_load,
    check_slurm,
    hosts_entry,
)
from horovod_transformer.commands.doctor_run import check_disk
from horovod_transformer.config import Config


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_no_compiler_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    row = check_compiler(CheckContext(Config()))
    assert row.state == "warn" and "g++" in row.found and "install" in row.fix


@pytest.mark.parametrize(
    ("version", "state"), [("9.4.0", "warn"), ("10", "ok"), ("12.2.0", "ok"), ("", "warn")]
)
def test_compiler_version(tmp_path, monkeypatch, version, state):
    program(tmp_path, "g++", f'echo "{version}"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CXX", raising=False)
    assert check_compiler(CheckContext(Config())).state == state


def test_cxx_names_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "nothing-here"))
    row = check_compiler(CheckContext(Config()))
    assert row.state == "warn" and "nothing-here" in row.found


def test_without_horovodrun_it_names_the_other_way(monkeypatch):
    """As where Horovod was installed into a folder and its programs are not on PATH."""
    monkeypatch.setattr(shutil, "which", lambda *arguments, **more: None)
    row = check_horovod(CheckContext(Config()))
    assert row.state == "warn" and "`horovod-transformer launch` starts ranks without it" in row.found
    assert "one process only" not in row.found


QUOTA = """Disk quotas for user someone (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
nfs.example:/home {used} 9000000 10000000             120       0       0
"""


def test_quota_counts_in_the_home_folder(tmp_path, monkeypatch):
    report = tmp_path / "report"
    report.write_text(QUOTA.format(used="8999999"))
    # Exit code 1 is what `quota` gives beside its table to one who is over a limit.
    program(tmp_path / "bin", "quota", f"cat {report}; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    home, elsewhere = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert check_home(CheckContext(Config())).state == "warn"
    row = check_disk(CheckContext(Config(), output_dir=home / "run"))
    assert row.state == "fail" and "quota" in row.found
    assert check_disk(CheckContext(Config(), output_dir=elsewhere)).state == "ok"


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
    row = check_host_name(CheckContext(Config(), hosts=hosts))
    assert row.state == state
    assert ("127." in row.found and str(hosts) in row.fix) == (state == "warn")


@pytest.mark.parametrize(
    ("ours", "said"), [(True, "fine on one machine"), (False, "several ranks would not start")]
)
@pytest.mark.parametrize("hosts_line", ["203.0.113.9 {name}", ""])
def test_a_name_that_is_no_address_of_this_machine(tmp_path, monkeypatch, hosts_line, ours, said):
    name = "no-such-host.invalid"
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    hosts = tmp_path / "hosts"
    hosts.write_text(hosts_line.format(name=name))
    monkeypatch.setattr("horovod_transformer.distributed.hosts.gloo_uses_interface", lambda: ours)
    row = check_host_name(CheckContext(Config(), hosts=hosts))
    assert row.state == "warn" and said in row.found and str(hosts) in row.fix


def test_a_user_without_a_home(tmp_path, monkeypatch):
    def nobody_knows():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody_knows)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    program(tmp_path / "bin", "quota", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert check_home(CheckContext(Config())).state == "warn"
    assert check_disk(CheckContext(Config(), output_dir=tmp_path)).state == "ok"


def test_hosts_entry_is_by_whole_names(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.1.1 node10\n\nnonsense\n10.0.0.1 NODE1 alias\n")
    assert hosts_entry(hosts, "node1") == "10.0.0.1"
    assert hosts_entry(hosts, "alias") == "10.0.0.1"
    assert hosts_entry(hosts, "node") is None
    assert hosts_entry(tmp_path / "absent", "node") is None


def test_slurm(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_slurm(CheckContext(Config())).state == "ok"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, "sbatch", "echo slurm 22.05.8")
    row = check_slurm(CheckContext(Config(), "my.yaml"))
    assert "22.05.8" in row.found and "my.yaml" in row.found
    program(tmp_path, "sbatch", "echo error >&2; exit 1")
    assert check_slurm(CheckContext(Config())).state == "warn"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert "job 77" in check_slurm(CheckContext(Config())).found


@pytest.mark.parametrize(("load", "state"), [(0.2, "ok"), (4.0, "ok"), (4.1, "warn")])
def test_a_load_above_the_cores_is_a_warning(monkeypatch, load, state):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    row = check_load(CheckContext(Config()))
    assert row.state == state and row.found.startswith(f"{load} processes wanted a core in the last minute")
