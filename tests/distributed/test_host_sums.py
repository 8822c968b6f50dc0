"""Sums within each host first: the same weights, on ranks of one machine that pose as several hosts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from horovod_transformer.distributed.bootstrap import host_sets
from horovod_transformer.distributed.host_sums import HostSums, HostThroughHorovod
from tests.conftest import PATIENCE_S
from tests.distributed.conftest import job_environment

HOROVOD_SAID = "join.0"
ROWS_APART = "embedding rows"
# So many tokens that those of a pass are few: the embedding's gradient leaves in two parts.
LARGE_VOCABULARY = {"model__vocab_size": 2000}
BFLOAT16 = {"distributed__compression": "bf16"}


@pytest.fixture
def train(root, write_config, outcome_of, tmp_path):
    """`train(hosts, **changes)` trains on a rank for each letter, its host's name; returns what was left.

    It goes on where a run has stopped if given that run's outcome, as `resumed`.
    """
    runs = iter(range(100))

    def run(hosts, resumed=None, **changes):
        job = next(runs)
        folder = resumed.folder if resumed else tmp_path / f"run{job}"
        settings = {"training__max_updates": 4, "training__lr_decay_updates": 4}
        settings |= {"training__eval_interval": 2, **changes}
        config = write_config(folder.with_suffix(".yaml"), **settings)
        words = ["-m", "src.train", "--config", str(config), "--output_dir", str(folder), "--run_name", "run"]
        words += ["--resume", "auto"] if resumed else []
        ranks = []
        for rank, host in enumerate(hosts):
            step = {"NUM_TASKS": len(hosts), "NODELIST": "localhost", "ID": 0, "LAUNCH_PORT": 1}
            slurm = {f"SLURM_STEP_{key}": str(value) for key, value in step.items()}
            slurm |= {"SLURM_JOB_ID": str(job), "SLURM_PROCID": str(rank), "SLURMD_NODENAME": host}
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
        outcome.in_two_steps, outcome.folder = HOROVOD_SAID in told[0], folder
        outcome.in_two_parts = ROWS_APART in told[0]
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
    changes = {"distributed__sums": "exact", "training__optimizer": "muon", **LARGE_VOCABULARY}
    several = train(hosts, distributed__hierarchical="on", **changes)
    assert_same_run(train("a", **changes), several)
    assert several.in_two_steps == in_two_steps
    assert several.in_two_parts == in_two_steps


@more
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("hosts", "compression"), [("aabb", "none"), ("aabb", "fp16"), ("aabb", "bf16"), ("abb", "bf16")]
)
def test_the_embedding_in_two_parts_is_the_same_but_for_rounding(train, assert_same_run, hosts, compression):
    changes = {"distributed__sums": "fast", "distributed__compression": compression}
    changes |= {"training__per_gpu_batch_size": 1, **LARGE_VOCABULARY}  # several passes an update
    first, again = (train(hosts, distributed__hierarchical="on", **changes) for _ in range(2))
    assert_same_run(first, again)
    whole = train(hosts, distributed__gradient_groups=1, **changes)
    assert first.in_two_parts and not whole.in_two_parts
    for name, weights in whole.state["model"].items():
        close = torch.isclose(first.state["model"][name], weights, rtol=0, atol=1e-4)
        assert close.float().mean() > 0.99, name


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


@pytest.mark.distributed
@pytest.mark.parametrize("hosts", ["aabb", pytest.param("abb", marks=more), pytest.param("ab", marks=more)])
def test_bfloat16_between_hosts_resumes_to_the_bit(train, assert_same_run, hosts):
    straight = train(hosts, **BFLOAT16)
    stopped = train(hosts, training__max_updates=2, **BFLOAT16)
    assert_same_run(straight, train(hosts, resumed=stopped, **BFLOAT16))
    remainders = straight.state["optimizer"]["remainders"]
    assert len(remainders) == len(hosts) and all(each.any() for each in remainders)
    plain = train(hosts, distributed__sums="fast").state
    assert "remainders" not in plain["optimizer"]
    for name, weights in plain["model"].items():
        # AdamW's first steps have the rate's length, however small a gradient: its sign may change.
        close = torch.isclose(straight.state["model"][name], weights, rtol=0, atol=1e-4)
        assert close.float().mean() > 0.9, name
        assert not torch.equal(straight.state["model"][name], weights), name


@more
@pytest.mark.distributed
def test_other_ranks_go_on_without_the_remainders(train):
    stopped = train("aabb", training__max_updates=2, **BFLOAT16)
    assert train("ab", resumed=stopped, **BFLOAT16).state["progress"]["update"] == 4


@more
@pytest.mark.distributed
def test_on_one_host_nothing_is_compressed(train, assert_same_run):
    plain = train("aa", distributed__sums="fast")
    assert_same_run(plain, train("aa", **BFLOAT16))


@pytest.mark.parametrize("ranks", [1, 2])
def test_through_horovod_a_lone_rank_keeps_its_numbers(ranks):
    names = []

    def reduce_scatter(flat, name):
        names.append(name)
        return (flat * ranks).chunk(ranks)[0]

    def all_gather(flat, name):
        names.append(name)
        return torch.cat([flat] * ranks)

    host = HostThroughHorovod(torch.float32, [6, 4], ranks, reduce_scatter, all_gather)
    host.put(0, [torch.ones(2, 2)])
    host.put(1, [torch.ones(1), torch.ones(3)])
    assert host.join(0, host.share(0)).tolist() == ([1, 1, 1, 1, 0, 0] if ranks == 1 else [2] * 6)
    assert host.join(1, host.share(1)).tolist() == [ranks] * 4
    assert names == ([] if ranks == 1 else ["share.0", "join.0", "share.1", "join.1"])


def test_sets_of_ranks():
    assert host_sets(6, 2) == [[0, 1], [2, 3], [4, 5], [0, 2, 4], [1, 3, 5]]


class OneHost:
    """The ranks of a host, one of them here: each hands over the same gradients."""

    def __init__(self, ranks):
        self.ranks, self.told, self.flat = ranks, [], {}

    def put(self, group, gradients):
        self.told.append((group, [gradient.tolist() for gradient in gradients]))
        self.flat[group] = torch.cat([gradient.reshape(-1) for gradient in gradients])

    def share(self, group):
        return self.flat[group] * self.ranks

    def join(self, group, share):
        return torch.cat([share, share.new_zeros(1)])  # one more than was put


def test_groups_leave_in_one_order_and_all_of_them():
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (5,), (1,), (4,))]
    groups, host = [parameters[:2], parameters[2:3], parameters[3:]], OneHost(2)
    sums = HostSums(groups, 2, host, lambda share, group: share + group)
    for _ in range(2):
        # The last group is ready first, and the middle one not at all.
        parameters[3].sum().backward()
        (parameters[0].sum() + parameters[1].sum()).backward()
        parameters[3].sum().backward()
        assert not host.told
        (parameters[0].sum() + parameters[1].sum()).backward()
        sums.synchronize()
        assert host.told == [(0, [[[2.0] * 3] * 2, [2.0] * 5]), (1, [[0.0]]), (2, [[2.0] * 4])]
        assert [p.grad.tolist() for p in parameters] == [[[4.0] * 3] * 2, [4.0] * 5, [1.0], [6.0] * 4]
        host.told.clear()
        for parameter in parameters:
            parameter.grad = None
