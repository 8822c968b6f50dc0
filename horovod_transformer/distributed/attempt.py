"""Which launch this process belongs to, and which start of that launch it is."""

from __future__ import annotations

import os


def launch_id() -> str | None:
    """What every start of one launch shares: a Slurm job's number, torchrun's run id; else None."""
    job, run = os.environ.get("SLURM_JOB_ID"), os.environ.get("TORCHELASTIC_RUN_ID")
    if run and run != "none":
        return f"torchrun-{run}"
    return f"slurm-{job}" if job else None


def attempt() -> int:
    """0 on the first start of a launch, more when Slurm or torchrun has started it again."""
    counts = (os.environ.get(name, "") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return sum(int(count) for count in counts if count.isdigit())
