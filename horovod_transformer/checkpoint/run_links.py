"""The links that lead to a run's files from outside its folder: `checkpoints/last.pt` and others."""

from __future__ import annotations

import os
from pathlib import Path

from horovod_transformer.checkpoint.run_paths import BEST, LAST, RUNS, shown_checkpoints
from horovod_transformer.config_sections import TABLES, PathsConfig
from horovod_transformer.system.files import made_aside


def links_into(paths: PathsConfig, name: str, folder: Path) -> dict[Path, Path]:
    """Those of the names that may lead to a run which lead into its folder, each with its path in there."""
    inside = folder.resolve()
    targets = {link: Path(os.path.realpath(link)) for link in _links(paths, name) if link.is_symlink()}
    return {
        link: target.relative_to(inside) for link, target in targets.items() if target.is_relative_to(inside)
    }


def _links(paths: PathsConfig, name: str) -> list[Path]:
    """The names that may lead to a run."""
    shown, output = shown_checkpoints(paths), Path(paths.output_dir)
    logs = (output / "logs").glob("train_rank*.log")
    return [output / RUNS / TABLES / name, shown / LAST, shown / BEST, *logs]


def is_our_link(path: Path) -> bool:
    """Whether a name was made by `make_link`: what it leads to is a run's own."""
    return path.is_symlink() and RUNS in Path(os.readlink(path)).parts


def make_link(link: Path, target: Path) -> None:
    """Let a name stand for a file or folder, in place of the link that may be there.

    It is relative: the folder that holds both can be moved. If a folder on the way is a link, it is not.

    Raises:
        OSError: It cannot be made, or the name is a file's or a folder's own.
    """
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is no link")
    link.parent.mkdir(parents=True, exist_ok=True)
    with made_aside(link) as partial:
        partial.symlink_to(os.path.relpath(target, link.parent))
        if partial.resolve() != target.resolve():
            partial.unlink()
            partial.symlink_to(target.absolute())
