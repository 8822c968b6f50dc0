"""The folders of a run: who may write there, and what the run starts from."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from horovod_transformer import distributed
from horovod_transformer.checkpoint.manager import CheckpointManager, Takeover
from horovod_transformer.config_sections import PathsConfig
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import tell
from horovod_transformer.system.files import write_text
from horovod_transformer.system.locks import FolderLock
from horovod_transformer.training.resume import Start, StartRequest

# Where the starts of a launch are counted, and how many may bring nothing.
STARTS = ".starts"
STARTS_WITHOUT_PROGRESS = 2


class RunFolder:
    """A run's checkpoints and records, and the right to write them: rank 0's from `claim` to `release`.

    Args:
        checkpoints: In this folder.
        paths: Where the run writes.

    Attributes:
        checkpoints: As given.
        lock: Rank 0's, of the checkpoints; None on other ranks, and before `claim`.
    """

    def __init__(self, checkpoints: CheckpointManager, paths: PathsConfig) -> None:
        self.checkpoints = checkpoints
        self.lock: FolderLock | None = None
        self._paths = paths
        self._records: FolderLock | None = None
        self._launch: str | None = None

    def claim(self, request: StartRequest, find_start: Callable[[StartRequest], Start]) -> Start:
        """Make and lock the folders, and find what the run starts from; on rank 0.

        A run without a name gets one here: the time, and a number if another run has that name.

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
        if launch is not None:
            # Two experiments of one Slurm job share its name, but seldom the run's.
            self._launch = f"{launch}\n{request.run_name or ''}"
        # Earlier versions recorded no run's name.
        again = attempt > 0 and launch is not None and self.checkpoints.launch in (launch, self._launch)
        start = find_start(request.on_attempt(again))
        require_progress(folder, self._launch, attempt, start.state.update)
        start.state.run_name = self._lock_records(start.state.run_name)
        if start.state.update == 0:
            self._require_one_run(start.state.run_name)
        return start

    def _lock_records(self, name: str) -> str:
        """Lock what a run of this name records: runs with folders of their own may share `runs/`.

        Args:
            name: Empty for a run that takes the time as its name, and a number if another has that.

        Returns:
            The name.
        """
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        for number in itertools.count(1):
            chosen = name or (now if number == 1 else f"{now}-{number}")
            tables = self._paths.tables_of(chosen)
            # Beside the folder, which is renamed when another run takes its name.
            path = tables.with_name(f".{tables.name}.lock")
            lock = FolderLock(path, str(tables), distributed.launch_id(), distributed.attempt())
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire(tell)
            except OSError as error:
                where = error.filename or tables
                raise UserError(f"{where}: cannot write the run's records: {error.strerror}") from None
            except UserError as error:
                if name:
                    raise UserError(f"{error} (or another --run_name)") from None
                continue
            if name or not tables.exists():
                self._records = lock
                return chosen
            lock.release()
        raise AssertionError("unreachable")

    def _require_one_run(self, name: str) -> None:
        """Refuse a fresh run that would rename other runs' folders together with those of its name."""
        for folder in (self._paths.tables_of(name), Path(self._paths.tensorboard_dir) / name):
            if folder.is_dir() and any(path.is_dir() for path in folder.iterdir()):
                raise UserError(f"--run_name {name}: {folder} holds other folders; choose another name")

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
            self.checkpoints.record_launch(self._launch)
        except OSError as error:
            folder = self.checkpoints.folder
            raise UserError(f"{folder}: cannot archive earlier checkpoints: {error.strerror}") from None
        return archived

    def release(self) -> None:
        """Give the folders up."""
        for lock in (self._records, self.lock):
            if lock is not None:
                lock.release()


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
