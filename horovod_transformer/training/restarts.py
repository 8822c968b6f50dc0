"""A launch that is started again and again without getting anywhere ends, so that no allocation is burnt."""

from __future__ import annotations

import json
from pathlib import Path

from horovod_transformer.errors import UserError
from horovod_transformer.system.files import write_text

STARTS = ".starts"
STARTS_WITHOUT_PROGRESS = 2


def require_progress(folder: Path, launch: str | None, attempt: int, update: int) -> None:
    """Record where this start of a launch begins, and refuse it if the last two brought nothing; on rank 0.

    Args:
        folder: The run's checkpoints; the record lies beside them.
        launch: What all starts of the launch share; None for one that nobody starts again.
        attempt: 0 on its first start.
        update: The update that this start begins after.

    Raises:
        UserError: Two starts in a row have ended before a new checkpoint.
    """
    if launch is None:
        return
    path = folder / STARTS
    try:
        record = json.loads(path.read_text())
        begun = [int(number) for number in record["updates"]] if record["launch"] == launch else []
    except (OSError, ValueError, TypeError, KeyError):
        begun = []
    begun = [*begun, update] if attempt else [update]
    recent = begun[-STARTS_WITHOUT_PROGRESS - 1 :]
    write_text(path, json.dumps({"launch": launch, "updates": recent}))
    if len(recent) > STARTS_WITHOUT_PROGRESS and len(set(recent)) == 1:
        raise UserError(
            f"two starts in a row ended before a new checkpoint, the last one being of update {update}; what "
            "they printed tells why. Not starting again; once it is mended, --resume auto continues"
        )
