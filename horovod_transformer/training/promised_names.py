"""The names that lead to the run that wrote a checkpoint last: `checkpoints/last.pt` and others."""

from __future__ import annotations

from pathlib import Path

from horovod_transformer.checkpoint.manager import planned_updates, run_name_in
from horovod_transformer.checkpoint.run_folders import mark_replaced, write_record
from horovod_transformer.checkpoint.run_links import make_link
from horovod_transformer.checkpoint.run_paths import BEST, LAST, RunPaths, run_paths, shown_checkpoints
from horovod_transformer.config_sections import PathsConfig
from horovod_transformer.errors import UserError
from horovod_transformer.system.files import archive_path
from horovod_transformer.system.locks import FolderLock

RANK_0_LOG = "train_rank0.log"


class PromisedNames:
    """`checkpoints/last.pt`, `checkpoints/best_model.pt` and `logs/train_rank0.log`; for rank 0.

    They are links, each of which moves to a run once that has a file to show. Where the config names a folder
    for checkpoints or logs, files are written there, and there are no links.

    Args:
        config: Where runs write, as the config says.
        paths: Where this run writes.
    """

    def __init__(self, config: PathsConfig, paths: RunPaths) -> None:
        self._config, self._paths = config, paths
        self._done: set[Path] = set()

    def lead_here(self) -> list[str]:
        """Let the names lead to this run, as far as it has something to show.

        Returns:
            Lines for the user, if they have led to another run.
        """
        self._lines: list[str] = []
        self._moved: dict[Path, list[str]] = {}
        if self._config.checkpoint_dir is None:
            folder = shown_checkpoints(self._config)
            for name in (LAST, BEST):
                self._show(folder / name, self._paths.checkpoints / name)
        if self._config.log_dir is None:
            for log in self._paths.logs.glob("train_rank*.log"):
                self._show(Path(self._config.output_dir, "logs", log.name), log)
        for former, links in self._moved.items():
            lead = "now leads" if len(links) == 1 else "now lead"
            self._lines.append(f"{', '.join(links)} {lead} to this run, no longer to {former}")
        return self._lines

    def _show(self, link: Path, target: Path) -> None:
        """Link one file, once it is there; note if the link has led to another run's."""
        if link in self._done or not target.exists():
            return
        self._done.add(link)
        try:
            former = link.resolve().parent.parent if link.is_symlink() else None
            if link.exists() and not link.is_symlink():
                self._lines.append(self._move_aside(link))
            make_link(link, target)
        except (OSError, UserError) as error:
            self._lines.append(f"{link} does not lead to this run's, which is {target}: {error}")
            return
        is_another_ranks_log = link.suffix == ".log" and link.name != RANK_0_LOG
        leads_elsewhere = former not in (None, target.resolve().parent.parent)
        if former is not None and leads_elsewhere and former.exists() and not is_another_ranks_log:
            self._moved.setdefault(former, []).append(str(link))

    def _move_aside(self, file: Path) -> str:
        """Make room for a link where commit efaa3e3 wrote a file; return a line that says where it went."""
        if file.suffix == ".log":
            target = archive_path(file.with_name("previous"), [file])
            target.mkdir()
            file.rename(target / file.name)
            return f"moved {file} to {target}"
        folder = file.parent
        lock = FolderLock(folder / ".lock", str(folder))
        lock.acquire()
        name = run_name_in(folder) or "earlier"
        own = run_paths(self._config, name).own
        assert own is not None
        is_copy = (own / "checkpoints").exists()  # of a folder, with files in place of links
        if is_copy:
            own = archive_path(own.with_name(f"{own.name}.previous"), [folder])
        own.mkdir(parents=True, exist_ok=True)
        write_record(own, planned_updates(folder))
        if is_copy:
            mark_replaced(own)
        folder.rename(own / "checkpoints")
        folder.mkdir()
        (own / "checkpoints" / ".lock").unlink(missing_ok=True)
        lock.release()
        return f"moved the checkpoints of run {name} to {own / 'checkpoints'}"
