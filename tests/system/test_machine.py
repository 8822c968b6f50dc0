"""Cores: the least of affinity, a container's quota and Slurm's share counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from horovod_transformer.system import machine as cores
from horovod_transformer.system.machine import usable_address

BOUND = len(os.sched_getaffinity(0))


@pytest.fixture
def no_groups(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(cores, "_quotas", list)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    return monkeypatch


def test_affinity_and_slurm(no_groups: pytest.MonkeyPatch) -> None:
    assert cores.usable_cores() == BOUND
    for said, wanted in (("1", 1), ("64", BOUND), ("", BOUND), ("many", BOUND), ("0", 1)):
        no_groups.setenv("SLURM_CPUS_PER_TASK", said)
        assert cores.usable_cores() == wanted


@pytest.mark.parametrize(
    ("files", "groups", "wanted"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/", [1.5]),
        ({"cpu.max": "max 100000\n"}, "0::/", []),
        ({"a/cpu.max": "800000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b", [8.0]),
        ({"cpu.max": "200000 100000\n"}, "0::/host/only", [2.0]),
        ({"cpu.max": "nonsense"}, "0::/", []),
        ({}, "0::/a", []),
        ({}, "nonsense", []),
        (
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            "5:cpu,cpuacct:/a\n4:memory:/a",
            [3.0],
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "5:cpu:/", []),
    ],
)
def test_quotas_of_both_versions_of_control_groups(
    tmp_path: Path, files: dict[str, str], groups: str, wanted: list[float]
) -> None:
    there = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    for name, content in {"proc/self/cgroup": groups, **there}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cores._quotas(tmp_path) == wanted


def test_a_quota_is_rounded_up(no_groups: pytest.MonkeyPatch) -> None:
    no_groups.setattr(cores, "_quotas", lambda: [0.5])
    assert cores.usable_cores() == 1


def test_an_address_to_listen_on():
    assert usable_address("127.0.0.1") == "127.0.0.1"
    assert usable_address("localhost") in ("127.0.0.1", "::1")
    # One for documents, which no machine has; no name of any; none at all.
    assert [usable_address(name) for name in ("203.0.113.9", "no-such-host.invalid", "x" * 300)] == [
        "",
        "",
        "",
    ]
