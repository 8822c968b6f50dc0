"""Sums within each host first: the same weights, on ranks of one machine that pose as several hosts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from horovod_transformer.distributed.bootstrap import host_sets
from horovod_transformer.distributed.host_sums import HostSums
from tests.conftest import PATIENCE_S
from tests.distributed.conftest import job_environment

HOROVOD_SAID = "share.0"


@pytest.fixture
def train(root, write_config, outcome_of, tmp_path):
    """`train(hosts, **changes)` trains on a rank for each letter, its host's name; returns what was left."""
    runs = iter(range(100))

    def run(hosts, **changes):
        folder = tmp_path / f"run{next(runs)}"
        config = write_config(folder.with_suffix(".yaml"), training__max_updates=4, **changes)
        words = ["-m", "src.train", "--config", str(config), "--output_dir", str(folder), "--run_name", "run"]
        ranks = []
        for rank, host in enumerate(hosts):
            step = {"NUM_TASKS": len(hosts), "NODELIST": "localhost", "ID": 0, "LAUNCH_PORT": 1}
            slurm = {f"SLURM_STEP_{key}": str(value) for key, value in step.items()}
            slurm |= {"SLURM_JOB_ID": folder.name[3:], "SLURM_PROCID": str(rank), "SLURMD_NODENAME": host}
            environment = job_environment() | (slurm if len(hosts) > 1 else {})
            environment |= {"HOROVOD_LOG_LEVEL": "trace" if rank == 0 else "error"}
            ranks.append(
                subprocess.Popen(
                    [sys.executable, *words],
                    cwd=root,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        told = [rank.communicate(timeout=PATIENCE_S)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * len(ranks), told[0][-3000:]
        outcome = outcome_of(folder)
        outcome.in_two_steps = HOROVOD_SAID in told[0]
        return outcome

    return run


more = pytest.mark.more


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("hosts", "in_two_steps"),
    [
        ("aabb", True),
        pytest.param("abb", False, marks=more),  # hosts have different numbers of ranks
        pytest.param("ab", False, marks=more),  # or one each
        pytest.param("aabbcc", True, marks=more),
        pytest.param("aaabbb", True, marks=more),
    ],
)
def test_exact_sums_stay_exact(train, assert_same_run, hosts, in_two_steps):
    changes = {"distributed__sums": "exact", "training__optimizer": "muon"}
    several = train(hosts, distributed__hierarchical="on", **changes)
    assert_same_run(train("a", **changes), several)
    assert several.in_two_steps == in_two_steps


@more
@pytest.mark.distributed
def test_float_sums_repeat_and_are_those_of_one_step(train, assert_same_run):
    fast = {"distributed__sums": "fast", "distributed__gradient_groups": 3}
    first, again = (train("aabb", distributed__hierarchical="on", **fast) for _ in range(2))
    assert first.in_two_steps
    assert_same_run(first, again)
    flat = train("aabb", **fast)
    assert not flat.in_two_steps
    for name, weights in flat.state["model"].items():
        torch.testing.assert_close(first.state["model"][name], weights, rtol=0, atol=1e-5)


def test_sets_of_ranks():
    assert host_sets(6, 2) == [[0, 1], [2, 3], [4, 5], [0, 2, 4], [1, 3, 5]]


class Doubled:
    """A compression, and what its ranks' sum is made of."""

    @staticmethod
    def compress(tensor):
        return tensor.double(), tensor.dtype

    @staticmethod
    def decompress(tensor, context):
        return tensor.to(context)


def test_groups_leave_in_one_order_and_all_of_them():
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (5,), (1,), (4,))]
    groups, sent = [parameters[:2], parameters[2:3], parameters[3:]], []

    def share(flat, name):
        sent.append((name, flat.dtype, len(flat)))
        return flat * 2

    sums = HostSums(groups, 2, Doubled, [share], 3)
    for _ in range(2):
        # The last group is ready first, and the middle one not at all.
        parameters[3].sum().backward()
        (parameters[0].sum() + parameters[1].sum()).backward()
        parameters[3].sum().backward()
        assert not sent
        (parameters[0].sum() + parameters[1].sum()).backward()
        sums.synchronize()
        assert sent == [("0", torch.float64, 12), ("1", torch.float64, 3), ("2", torch.float64, 6)]
        assert [p.grad.tolist() for p in parameters[1:]] == [[4.0] * 5, [0.0], [4.0] * 4]
        assert parameters[0].grad.shape == (2, 3) and parameters[0].grad.dtype == torch.float32
        sent.clear()
        for parameter in parameters:
            parameter.grad = None
