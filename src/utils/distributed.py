"""Horovod: `world_size, rank, local_rank, use_cuda = setup_horovod(require_distributed=True)`."""

from horovod_transformer.distributed import (
    get_local_rank,
    get_rank,
    get_world_size,
    is_main_process,
    metric_average,
    setup_horovod,
)

__all__ = [
    "get_local_rank",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "metric_average",
    "setup_horovod",
]
