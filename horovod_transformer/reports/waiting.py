"""How long updates wait for the gradients of other processes, and what would shorten that."""

from __future__ import annotations

# Below this share of an update there is little to gain.
WORTH_A_HINT = 0.15


def about_waiting(share: float, hosts: int, processes: int, hierarchical: str, compression: str) -> str:
    """What rank 0 waited, and how to wait less, in a line.

    Args:
        share: Of the time of an update, from the end of its own backward pass to the last sum.
        hosts: Machines of the run.
        processes: Of all machines.
        hierarchical: As `distributed.hierarchical`.
        compression: As `distributed.compression`.
    """
    told = f"{share:.0%} of an update is waiting for other processes' gradients"
    if share < WORTH_A_HINT:
        return told
    if hosts == 1:
        return f"{told}: are there more processes than cores or GPUs, or is the machine busy with other work?"
    less = ["a larger training.global_batch_size (another run)", "fewer machines"]
    if compression == "none":
        less.insert(0, "distributed.compression: fp16 (rounded sums)")
    if processes > hosts and hierarchical == "off":
        less.append("on a slow link distributed.hierarchical: on")
    return f"{told}; what would help: {', '.join(less)}"
