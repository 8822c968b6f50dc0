"""What all starts of a launch share, and whether they bring anything."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from horovod_transformer import distributed
from horovod_transformer.errors import UserError
from horovod_transformer.system.files import write_text
from horovod_transformer.training.resume import StartRequest

# How many starts of a launch may bring nothing.
STARTS_WITHOUT_PROGRESS = 2


def launch_key(request: StartRequest) -> str | None:
    """What all starts of this launch share, and no other command: jobs and run ids may have several.

    Returns:
        The Slurm job or torchrun's run id, with the run's name and a fingerprint of the command line; None
        for a launch that nobody starts again.
    """
    launch = distributed.launch_id()
    if launch is None:
        return None
    command = hashlib.sha256("\0".join(sys.argv[1:]).encode(errors="surrogateescape")).hexdigest()
    return f"{launch}\n{request.run_name or ''}\n{command}"


def require_progress(record: Path, launch: str | None, attempt: int, update: int) -> None:
    """Record where this start of a launch begins, and refuse it if the last two brought nothing; on rank 0.

    Args:
        record: The file that keeps it.
        launch: What all starts of the launch share; None for one that nobody starts again.
        attempt: 0 on its first start.
        update: The update that this start begins after.

    Raises:
        UserError: Two starts in a row have ended before a new checkpoint.
    """
    if launch is None:
        return
    try:
        kept = json.loads(record.read_text())
        begun = [int(number) for number in kept["updates"]] if kept["launch"] == launch else []
    except (OSError, ValueError, TypeError, KeyError):
        begun = []
    begun = [*begun, update] if attempt else [update]
    recent = begun[-STARTS_WITHOUT_PROGRESS - 1 :]
    write_text(record, json.dumps({"launch": launch, "updates": recent}))
    if len(recent) > STARTS_WITHOUT_PROGRESS and len(set(recent)) == 1:
        raise UserError(
            f"two starts in a row ended before a new checkpoint, the last one being of update {update}; what "
            "they printed tells why. Not starting again; once it is mended, --resume auto continues"
        )
