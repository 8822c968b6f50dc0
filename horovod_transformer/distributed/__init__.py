"""Horovod: how ranks meet (bootstrap), what they send (collectives, exchange), on which devices (devices).

Every function also works in a lone process, where nothing is exchanged and Horovod need not even
be installed. A function marked *collective* must be called by all ranks, in the same order.
"""

from horovod_transformer.distributed.agreement import raise_on_all_ranks, run_on_rank0
from horovod_transformer.distributed.bootstrap import (
    attempt,
    horovod_is_installed,
    launch_id,
    setup_horovod,
    usual_processes,
)
from horovod_transformer.distributed.collectives import (
    allgather,
    allreduce,
    built_operations,
    gather_to_rank0,
    get_hosts,
    get_local_rank,
    get_local_size,
    get_rank,
    get_world_size,
    is_main_process,
    lost_ranks_explained,
    metric_average,
    skip_synchronize,
    start_timeline,
    stop_timeline,
    synchronize,
)
from horovod_transformer.distributed.devices import (
    choose_device,
    common_precision,
    completes_asynchronously,
)
from horovod_transformer.distributed.equal_weights import require_equal_weights, weights_digest
from horovod_transformer.distributed.exchange import broadcast, gather_objects
from horovod_transformer.distributed.gradients import distribute_optimizer, error_feedback, send_embedding
from horovod_transformer.distributed.threads import set_threads

__all__ = [
    "allgather",
    "allreduce",
    "attempt",
    "broadcast",
    "built_operations",
    "choose_device",
    "common_precision",
    "completes_asynchronously",
    "distribute_optimizer",
    "error_feedback",
    "gather_objects",
    "gather_to_rank0",
    "get_hosts",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "horovod_is_installed",
    "is_main_process",
    "launch_id",
    "lost_ranks_explained",
    "metric_average",
    "raise_on_all_ranks",
    "require_equal_weights",
    "run_on_rank0",
    "send_embedding",
    "set_threads",
    "setup_horovod",
    "skip_synchronize",
    "start_timeline",
    "stop_timeline",
    "synchronize",
    "usual_processes",
    "weights_digest",
]
