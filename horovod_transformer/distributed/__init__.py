"""Horovod: how ranks meet (bootstrap), what they exchange (collectives), what each computes on (devices).

Every function also works in a lone process, where nothing is exchanged and Horovod need not even
be installed. A function marked *collective* must be called by all ranks, in the same order.
"""

from horovod_transformer.distributed.bootstrap import setup_horovod
from horovod_transformer.distributed.collectives import (
    broadcast,
    distribute_optimizer,
    finish_gradient_sum,
    finish_sum_over_ranks,
    from_main_process,
    get_local_rank,
    get_local_size,
    get_rank,
    get_world_size,
    gradients_already_summed,
    is_main_process,
    lost_ranks_explained,
    metric_average,
    start_sum_over_ranks,
    sum_over_ranks,
    together,
)
from horovod_transformer.distributed.devices import set_threads
from horovod_transformer.distributed.equal_weights import require_equal_weights, weights_digest

__all__ = [
    "broadcast",
    "distribute_optimizer",
    "finish_gradient_sum",
    "finish_sum_over_ranks",
    "from_main_process",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "gradients_already_summed",
    "is_main_process",
    "lost_ranks_explained",
    "metric_average",
    "require_equal_weights",
    "set_threads",
    "setup_horovod",
    "start_sum_over_ranks",
    "sum_over_ranks",
    "together",
    "weights_digest",
]
