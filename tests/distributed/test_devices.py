"""One GPU per rank, however the launcher shows them; no GPU is needed to test the choice."""

import pytest
import torch

from horovod_transformer.distributed import collectives, devices
from horovod_transformer.distributed.devices import (
    SLURM_GPU_VARIABLES,
    RankDevice,
    _look,
    choose_device,
    completes_asynchronously,
    local_device_index,
    require_alike,
    require_own_devices,
)
from horovod_transformer.errors import UserError


@pytest.mark.parametrize("local_rank", range(4))
def test_all_visible_each_rank_takes_its_own(local_rank: int) -> None:
    assert local_device_index(local_rank, visible=4) == local_rank


@pytest.mark.parametrize("local_rank", range(4))
def test_only_its_own_visible(local_rank: int) -> None:
    assert local_device_index(local_rank, visible=1) == 0


def test_more_ranks_than_gpus() -> None:
    with pytest.raises(UserError, match="2 GPUs.*rank 2.*one process per GPU"):
        local_device_index(2, visible=2)


def test_two_ranks_on_one_gpu_are_named() -> None:
    require_own_devices(["GPU-a", "GPU-b", "GPU-c"])
    with pytest.raises(UserError, match="ranks 1 and 2 would share one GPU"):
        require_own_devices(["GPU-a", "GPU-b", "GPU-b"])


def test_ranks_of_one_kind_may_train_together() -> None:
    require_alike([RankDevice("cpu")] * 3)
    require_alike([RankDevice("cuda", "H100", "a"), RankDevice("cuda", "A100", "b")])


def test_a_rank_without_its_gpu_is_named() -> None:
    with pytest.raises(UserError, match=r"ranks \[1\] see no usable GPU, the others do"):
        require_alike([RankDevice("cuda", "H100", "a"), RankDevice("cpu"), RankDevice("cuda", "H100", "c")])


def test_a_ranks_problem_is_told() -> None:
    with pytest.raises(UserError, match="rank 1: CUDA driver version is insufficient"):
        require_alike([RankDevice("cpu"), RankDevice("cpu", problem="CUDA driver version is insufficient")])


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in SLURM_GPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_gpu_and_a_horovod_without_nccl_is_told(no_slurm: pytest.MonkeyPatch) -> None:
    # Horovod as it is built where there is no CUDA, on a machine that has a GPU all the same.
    hvd = pytest.importorskip("horovod.torch")
    if hvd.nccl_built():
        pytest.skip("Horovod is built with NCCL here")
    no_slurm.setattr(collectives, "_hvd", hvd)
    no_slurm.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="Horovod was built without NCCL; rebuild it with `REBUILD=1"):
        require_alike([_look("auto")])
    require_alike([_look("cpu")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_a_mistake(no_slurm: pytest.MonkeyPatch) -> None:
    assert choose_device("auto") == choose_device("cpu") == (torch.device("cpu"), [])
    with pytest.raises(UserError, match="rank 0: training.device = cuda, but torch .* sees none"):
        choose_device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_JOB_GPUS", "0,1"),
        ("SLURM_JOB_GPUS", "0"),
        ("SLURM_STEP_GPUS", "0"),
        ("SLURM_GPUS_ON_NODE", "2"),
    ],
)
def test_a_gpu_that_slurm_granted_and_torch_does_not_see(
    no_slurm: pytest.MonkeyPatch, name: str, value: str
) -> None:
    no_slurm.setenv(name, value)
    with pytest.raises(
        UserError, match=rf"Slurm granted a GPU \({name}\), but torch .* --training.device cpu"
    ):
        choose_device("auto")
    assert choose_device("cpu")[0].type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(("name", "value"), [("SLURM_JOB_GPUS", ""), ("SLURM_GPUS_ON_NODE", "0")])
def test_no_gpu_that_slurm_granted(no_slurm: pytest.MonkeyPatch, name: str, value: str) -> None:
    no_slurm.setenv(name, value)
    assert choose_device("auto")[0].type == "cpu"


@pytest.mark.parametrize("value", [None, "", "0", "1", " 2", "1x", "true", "-1"])
@pytest.mark.parametrize(("kind", "ranks"), [("cuda", 2), ("cuda", 1), ("cpu", 2)])
def test_asynchronous_completion_is_what_horovod_takes_for_it(monkeypatch, value, kind, ranks) -> None:
    name = "HOROVOD_ENABLE_ASYNC_COMPLETION"
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices, "get_world_size", lambda: ranks)
    on = value in ("1", " 2", "1x") and (kind, ranks) == ("cuda", 2)
    assert completes_asynchronously(torch.device(kind)) == on
