"""The folder of a run's checkpoints: who may write there, and what the run starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from horovod_transformer import distributed
from horovod_transformer.checkpoint.manager import CheckpointManager, Takeover
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import tell
from horovod_transformer.system.files import write_text
from horovod_transformer.system.locks import FolderLock
from horovod_transformer.training.resume import Start, StartRequest

# Where the starts of a launch are counted, and how many may bring nothing.
STARTS = ".starts"
STARTS_WITHOUT_PROGRESS = 2


class RunFolder:
    """A run's checkpoints, and the right to write them, which rank 0 holds from `claim` to `release`.

    Args:
        checkpoints: In this folder.

    Attributes:
        checkpoints: As given.
        lock: Rank 0's; None on other ranks, and before `claim`.
    """

    def __init__(self, checkpoints: CheckpointManager) -> None:
        self.checkpoints = checkpoints
        self.lock: FolderLock | None = None

    def claim(self, request: StartRequest, find_start: Callable[[StartRequest], Start]) -> Start:
        """Make and lock the folder, and find what the run starts from; on rank 0.

        Args:
            request: What the user asked for. A later start of the same launch resumes what the first
                one began.
            find_start: Reads what such a request names; called while the folder is locked.

        Raises:
            UserError: Nothing can be written there, somebody else is writing there, what is to be resumed is
                not there or does not fit, or two starts in a row have brought nothing.
        """
        launch, attempt = distributed.launch_id(), distributed.attempt()
        self.checkpoints.make_folder()
        folder = self.checkpoints.folder
        lock = FolderLock(folder / ".lock", str(folder), launch, attempt)
        try:
            lock.acquire(tell)
        except OSError as error:
            raise UserError(f"{folder}: cannot lock this folder: {error.strerror}") from None
        self.lock = lock
        again = attempt > 0 and self.checkpoints.launch == launch
        start = find_start(request.on_attempt(again))
        require_progress(folder, launch, attempt, start.state.update)
        return start

    def take_over(self, takeover: Takeover) -> Path | None:
        """Archive what the run leaves behind; from here on later starts of the launch resume it. On rank 0.

        Returns:
            Where checkpoints were archived, or None.

        Raises:
            LockLostError: The folder is another process's by now.
            UserError: Nothing can be moved there.
        """
        assert self.lock is not None
        self.lock.require()
        try:
            archived = self.checkpoints.take_over(takeover)
            self.checkpoints.record_launch(distributed.launch_id())
        except OSError as error:
            folder = self.checkpoints.folder
            raise UserError(f"{folder}: cannot archive earlier checkpoints: {error.strerror}") from None
        return archived

    def release(self) -> None:
        """Give the folder up."""
        if self.lock is not None:
            self.lock.release()


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
