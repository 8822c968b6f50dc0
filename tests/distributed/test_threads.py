"""How many CPU threads each rank gets."""

import pytest
import torch

from horovod_transformer.distributed import threads as threads_module
from horovod_transformer.distributed.threads import set_threads
from horovod_transformer.system.launch_environment import Launch


@pytest.mark.parametrize(
    ("launcher", "given", "threads"),
    [
        ("horovodrun", None, 4),
        # One task of Slurm's that has started all ranks itself: they share its cores.
        ("torchrun", "16", 4),
        ("srun", "16", 16),
        # srun did not say how many: the ranks share what there is.
        ("srun", None, 4),
    ],
)
def test_ranks_share_the_cores_that_they_may_use(
    monkeypatch: pytest.MonkeyPatch, launcher: str, given: str | None, threads: int
) -> None:
    chosen: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if given:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    monkeypatch.setattr(threads_module, "this_process", lambda: Launch(launcher, 4))
    monkeypatch.setattr(threads_module, "get_local_size", lambda: 4)
    monkeypatch.setattr(threads_module, "usable_cores", lambda: 16)  # of 64, by a container's quota or Slurm
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    set_threads(None)
    assert chosen == [threads]
