"""The folders of a run: which run this is, and who may write there."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from horovod_transformer import distributed
from horovod_transformer.checkpoint.manager import (
    CheckpointManager,
    Takeover,
    planned_updates,
    run_name_in,
    run_name_of,
    update_of,
)
from horovod_transformer.checkpoint.run_folders import (
    is_run,
    mark_replaced,
    newest_update,
    own_folders,
    read_launch,
    run_of_checkpoint,
    run_of_launch,
    run_to_resume,
    status_of,
    write_record,
)
from horovod_transformer.checkpoint.run_links import links_into, make_link
from horovod_transformer.checkpoint.run_paths import (
    LAST,
    RECORD,
    RUNS,
    RunPaths,
    explicit,
    has_shared_checkpoints,
    is_run_name,
    lock_file,
    run_paths,
    shared_paths,
    shown_checkpoints,
)
from horovod_transformer.config_sections import TABLES, PathsConfig
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import tell
from horovod_transformer.system.files import archive_path
from horovod_transformer.system.launch_environment import this_process
from horovod_transformer.system.locks import FolderLock
from horovod_transformer.training.launches import launch_key, require_progress
from horovod_transformer.training.promised_names import PromisedNames
from horovod_transformer.training.resume import Start, StartRequest


class RunFolder:
    """A run's checkpoints and records, and the right to write them: rank 0's from `claim` to `release`.

    Args:
        paths: Where runs write, as the config says.
        keep: As for `CheckpointManager`.
        keep_every: The same.

    Attributes:
        paths: Where this run writes, once `settle` has been called.
        checkpoints: The same.
        names: What leads to it, once there is something to show; None for a run of commit efaa3e3.
        lock: Rank 0's, of the checkpoints; None on other ranks, and before `claim`.
    """

    paths: RunPaths
    checkpoints: CheckpointManager
    names: PromisedNames | None

    def __init__(self, paths: PathsConfig, keep: int, keep_every: int | None) -> None:
        self.lock: FolderLock | None = None
        self._config, self._keep = paths, (keep, keep_every)
        self._locks: list[FolderLock] = []
        self._launch: str | None = None
        # The run is one of commit efaa3e3, and goes on where that wrote.
        self._shares = False
        # It resumes another run's checkpoint, and takes a name that a third one has.
        self._replaces = False

    def claim(self, request: StartRequest, find_start: Callable[[StartRequest], Start]) -> Start:
        """Decide which run this is, lock its folders, and find what it starts from; on rank 0.

        A run without a name gets one here: the Slurm job's or the time, and a number if another run has that.

        Args:
            request: What the user asked for. A later start of the same launch resumes what the first
                one began.
            find_start: Reads what such a request names; called while the run is locked.

        Raises:
            UserError: Nothing can be written there, somebody else is writing there, what is to be resumed is
                not there or does not fit, it is not clear which run is meant, or two starts in a row have
                brought nothing.
        """
        self._launch = launch_key(request)
        self._shares = self._config.checkpoint_dir is None and self._means_shared_checkpoints(request)
        if self._shares or self._config.checkpoint_dir is not None:
            start = self._claim_shared(request, find_start)
        else:
            start = self._claim_own(request, find_start)
        start.in_shared_folders = self._shares
        self.settle(start)
        require_progress(self._starts, self._launch, distributed.attempt(), start.state.update)
        require_no_other_runs(self.paths, is_fresh=start.takeover.resumed is None)
        return start

    def settle(self, start: Start) -> None:
        """Take over on every rank what `claim` has decided on rank 0."""
        self._shares = start.in_shared_folders
        self._set(start.state.run_name)
        self.names = None if self._shares else PromisedNames(self._config, self.paths)

    def take_over(self, takeover: Takeover, updates: int) -> Path | None:
        """Archive what the run replaces; from here on later starts of the launch resume it. On rank 0.

        Args:
            takeover: What is archived among the checkpoints.
            updates: How many the run is to have.

        Returns:
            Where checkpoints were archived, or None.

        Raises:
            LockLostError: The folder is another process's by now.
            UserError: Nothing can be moved there.
        """
        assert self.lock is not None
        self.lock.require()
        paths, is_fresh = self.paths, takeover.resumed is None
        require_no_other_runs(paths, is_fresh)  # one may have come meanwhile
        try:
            replaced = self._archive_namesake() if is_fresh or self._replaces else None
            if paths.own is not None:
                # First: without it the next start would take the folder for somebody's own.
                paths.own.mkdir(parents=True, exist_ok=True)
                write_record(paths.own, updates, paths.name)
            self.checkpoints.make_folder()
            archived = self.checkpoints.take_over(takeover) or replaced
            self.checkpoints.record_launch(self._launch)
            self._link_tables()
        except OSError as error:
            folder = self.checkpoints.folder
            raise UserError(f"{folder}: cannot archive what was there: {error.strerror or error}") from None
        return archived

    def finish(self) -> None:
        """The run has made its last update: its starts need not be counted any more. On rank 0."""
        if self._launch is not None:
            self._starts.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the folders up."""
        for lock in reversed(self._locks):
            lock.release()

    def _set(self, name: str) -> None:
        self.paths = (shared_paths if self._shares else run_paths)(self._config, name)
        self.checkpoints = CheckpointManager(self.paths.checkpoints, *self._keep)

    @property
    def _starts(self) -> Path:
        """Where the starts of this launch are counted."""
        mark = hashlib.sha256((self._launch or "").encode()).hexdigest()[:12]
        folder = explicit(self._config, self._config.checkpoint_dir) or Path(self._config.output_dir, RUNS)
        return folder / f".starts-{mark}"

    def _is_later_start(self, recorded: str | None) -> bool:
        if not distributed.attempt() or self._launch is None or recorded is None:
            return False
        # Commit efaa3e3 did not record the command.
        return recorded in (self._launch, self._launch.rpartition("\n")[0], distributed.launch_id())

    def _means_shared_checkpoints(self, request: StartRequest) -> bool:
        """Whether the run is one of commit efaa3e3, whose checkpoints are in `checkpoints/` itself."""
        if not has_shared_checkpoints(self._config):
            return False
        folder = shown_checkpoints(self._config)
        if self._is_later_start(read_launch(folder)):
            return True
        if not request.resume:
            return False
        if request.resume != "auto":
            return Path(request.resume).resolve().parent == folder.resolve()
        if request.run_name is None:
            return self._auto_means_shared(folder)
        if run_paths(self._config, request.run_name).checkpoints.is_dir():
            return False
        return request.run_name == run_name_in(folder)

    def _auto_means_shared(self, folder: Path) -> bool:
        """Whether `--resume auto` without a name means the run of commit efaa3e3, where there are others."""
        own, name = run_to_resume(self._config), run_name_in(folder)
        if own is None:
            return True
        planned, done = planned_updates(folder), update_of(folder / LAST) or newest_update(folder)
        # A copy of all folders may have files in place of links: those are the same run's.
        if own == name or (planned is not None and done >= planned):
            return False
        runs = Path(self._config.output_dir, RUNS)
        if status_of(runs / own, runs).is_finished:
            return True
        raise UserError(
            f"--resume auto: {own} in {runs} and {name} in {folder} are both unfinished; say which with "
            "--run_name, or leave --resume out to start another"
        )

    def _claim_shared(self, request: StartRequest, find_start: Callable[[StartRequest], Start]) -> Start:
        """Claim a folder of checkpoints that runs share: resuming takes the newest, whoever wrote it."""
        self._set(request.run_name or "unnamed")
        folder = self.checkpoints.folder
        self.checkpoints.make_folder()
        try:
            self.lock = self._acquire(folder / ".lock", folder)
        except OSError as error:
            raise _cannot_write(error, folder) from None
        start = find_start(request.on_attempt(self._is_later_start(read_launch(folder))))
        name = start.state.run_name
        if name and not is_run_name(name):  # commit efaa3e3 took any, and other programs do
            start.notes.append("the checkpoint's run has a name that is no folder's; this one gets another")
        start.state.run_name = self._lock_records(name if is_run_name(name) else "")
        return start

    def _claim_own(self, request: StartRequest, find_start: Callable[[StartRequest], Start]) -> Start:
        """Claim a run's own folder."""
        name, request = self._choose_run(request)
        name = self._lock_records(name)
        self.lock = self._locks[0]
        self._set(name)
        start = find_start(request)
        resumed, own = start.takeover.resumed, self.paths.own
        if resumed is not None and own is not None and is_run(own):
            is_its_own = own.resolve() in resumed.resolve().parents or run_name_of(resumed) in (None, name)
            self._replaces = not is_its_own
        start.state.run_name = name
        return start

    def _choose_run(self, request: StartRequest) -> tuple[str, StartRequest]:
        """The name of the run that is meant, empty for a new one without, and what it starts from."""
        begun = None
        if distributed.attempt() > 0 and self._launch is not None:
            begun = run_of_launch(self._config, self._launch)
        if begun is not None:
            return begun, request.on_attempt(again=True)
        if request.resume == "auto":
            return request.run_name or run_to_resume(self._config) or "", request
        if not request.resume:
            return request.run_name or "", request
        # What a link names changes when another run writes a checkpoint.
        checkpoint = Path(request.resume)
        checkpoint = checkpoint.resolve() if checkpoint.exists() else checkpoint
        name = request.run_name or run_of_checkpoint(self._config, checkpoint) or run_name_of(checkpoint)
        return name or "", replace(request, resume=checkpoint)

    def _lock_records(self, name: str) -> str:
        """Lock what a run of this name writes.

        Args:
            name: Empty for a run that takes the Slurm job or the time as its name, and a number if another
                has that.

        Returns:
            The name.
        """
        for number in itertools.count(1):
            self._set(name or default_name(number))
            folders, held = self.paths.locked, len(self._locks)
            try:
                for folder in folders:
                    self._acquire(lock_file(folder), folder)
                if name or not any(folder.exists() for folder in folders):
                    return self.paths.name
            except OSError as error:
                raise _cannot_write(error, folders[0]) from None
            except UserError as error:
                if name:
                    raise UserError(f"{error} (or another --run_name)") from None
            while len(self._locks) > held:
                self._locks.pop().release()
        raise AssertionError("unreachable")

    def _acquire(self, path: Path, folder: Path) -> FolderLock:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(path, str(folder), distributed.launch_id(), distributed.attempt())
        lock.acquire(tell)
        self._locks.append(lock)
        return lock

    def _archive_namesake(self) -> Path | None:
        """Rename what an earlier run of the same name left; return the new name of its own folder, if any."""
        paths, shared = self.paths, shared_paths(self._config, self.paths.name).tables
        links = links_into(self._config, paths.name, paths.own) if paths.own else {}
        replaced = _archive(paths.own, links_too=True) if paths.own else None
        if replaced is not None:
            # They lead to the run that wrote a checkpoint last, and the new one has none yet.
            with suppress(OSError):
                for link, inside in links.items():
                    make_link(link, replaced / inside)
        if replaced is not None and (replaced / "tables").is_dir():
            _show_tables(shared.with_name(replaced.name), replaced / "tables")
        for folder in (paths.tables, paths.events, shared):
            _archive(folder)
        return replaced

    def _link_tables(self) -> None:
        """Let `runs/structured/NAME` lead to the run's tables; those of commit efaa3e3 move to them."""
        paths = self.paths
        if paths.own is None or paths.own not in paths.tables.parents:
            return
        link = shared_paths(self._config, paths.name).tables
        if link.is_dir() and not link.is_symlink() and not paths.tables.exists():
            link.rename(paths.tables)
        _archive(link)  # where a copy of the folders has files in place of links
        paths.tables.mkdir(parents=True, exist_ok=True)
        _show_tables(link, paths.tables)


def _show_tables(link: Path, tables: Path) -> None:
    """Make a link where the file system has links; a run needs none."""
    try:
        for parent in link.parents:
            if parent.name == TABLES:
                break
            if parent.is_symlink() and not parent.exists():
                parent.unlink()  # of a run that was removed by hand
        make_link(link, tables)
    except OSError as error:
        tell(f"{link} does not lead to this run's, which is {tables}: {error.strerror or error}")


def _cannot_write(error: OSError, folder: Path) -> UserError:
    return UserError(f"{error.filename or folder}: cannot write the run's records: {error.strerror}")


def default_name(number: int) -> str:
    """What a run is called that was given no name: the Slurm job, or the time."""
    job = this_process().job or ""
    name = job if job.startswith("slurm-") else datetime.now().strftime("%Y%m%d-%H%M%S")
    return name if number == 1 else f"{name}-{number}"


def _archive(folder: Path, links_too: bool = False) -> Path | None:
    """Rename a folder, so that nothing in it is overwritten; return its new name, None if it is not there."""
    if not folder.is_dir() or (folder.is_symlink() and not links_too):
        return None
    target = archive_path(folder.with_name(f"{folder.name}.previous"), [folder])
    if (folder / RECORD).is_file():
        mark_replaced(folder, target.name)
    folder.rename(target)
    return target


def require_no_other_runs(paths: RunPaths, is_fresh: bool) -> None:
    """Refuse a run whose folder lies in another run's or holds others; a fresh one, too, if it is the user's.

    Raises:
        UserError: So it is; what a fresh run finds under its name is renamed, and others would be, too.
    """
    option = f"--run_name {paths.name}"
    for folder in {paths.own, paths.tables, paths.events} - {None} if is_fresh else ():
        assert folder is not None
        if not folder.is_dir() or is_run(folder):
            continue
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if folder.name != "tables" and any(path.is_dir() for path in entries):
            raise UserError(f"{option}: {folder} holds other folders; choose another name")
        if entries and not any(map(_is_a_runs, entries)):
            raise UserError(f"{option}: {folder} holds files that are no run's; choose another name")
    if paths.own is not None and not is_run(paths.own):
        if any(own_folders(paths.own)):
            raise UserError(f"{option}: {paths.own} holds other runs; choose another name")
        for parent in paths.own.parents[: paths.name.count("/")]:
            if is_run(parent):
                raise UserError(f"{option}: {parent} is another run's; choose another name")


def _is_a_runs(path: Path) -> bool:
    """Whether a file is one that runs leave among their events and tables."""
    tables = ("train.csv", "val.csv", "samples.txt", "environment.json", "report.html")
    return path.name in tables or path.name.startswith(("events.out.tfevents", "config."))
