"""One GPU per rank, however the launcher shows them; no GPU is needed to test the choice."""

import pytest

from horovod_transformer.distributed.devices import local_device_index, require_own_devices
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
