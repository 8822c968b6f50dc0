"""One writer at a time for a folder, also across the machines of a shared file system.

    with FolderLock(Path("data/.v1.lock"), "data/v1") as lock:
        ...
        lock.require_held()      # right before what must not happen twice
        ...

The lock is one small file that names host, process and Slurm job of its owner and is touched while
the owner runs. A dead process of this host, and an earlier start of the same (requeued) Slurm job,
lose it at once; another host's owner after SILENCE_S without a touch.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from horovod_transformer.errors import UserError

SILENCE_S = 300.0
_TOUCH_EVERY_S = 20.0


class FolderLock:
    """Holds a lock file from `with` to its end.

    Args:
        path: The lock file; its folder exists.
        what: What is locked, for messages.
        silence_s: How long an owner on another host may be silent before it counts as dead.
        say: Told in a line when a lock was taken over.

    Raises:
        UserError: On entering: another process holds it. From `require_held`: it was lost.
    """

    def __init__(
        self, path: Path, what: str, silence_s: float = SILENCE_S, say: Callable[[str], None] = print
    ) -> None:
        self.path = path
        self.what = what
        self.silence_s = silence_s
        self.say = say
        self._mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
            "token": secrets.token_hex(8),
        }
        self._ended = threading.Event()

    def __enter__(self) -> FolderLock:
        draft = self.path.with_name(f"{self.path.name}.{self._mine['token']}")
        draft.write_text(json.dumps(self._mine), encoding="utf-8")
        try:
            while not self._link(draft):
                self._take_over_or_refuse(draft)
        finally:
            draft.unlink(missing_ok=True)
        self._toucher = threading.Thread(target=self._touch, daemon=True)
        self._toucher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._toucher.join()
        if self._owner() == self._mine:
            self.path.unlink(missing_ok=True)

    def require_held(self) -> None:
        """Check that nobody has taken the lock over.

        Raises:
            UserError: Somebody has; this process must not write.
        """
        owner = self._owner()
        if owner != self._mine:
            raise UserError(f"{self.what}: was taken over by {_name(owner)}; this process stops, unwritten")

    def _link(self, draft: Path) -> bool:
        try:
            os.link(draft, self.path)  # whole or not at all, and only if there is none: on NFS, too
        except FileExistsError:
            return False
        return True

    def _take_over_or_refuse(self, draft: Path) -> None:
        owner = self._owner()
        try:
            os.utime(draft)  # both times come from the file server's clock
            silent = draft.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return  # just given back
        if not self._is_dead(owner, silent):
            raise UserError(
                f"{self.what}: {_name(owner)} is at work on it, last sign of life {max(0, silent):.0f} s "
                f"ago; wait for it, or end it (one on another host counts as dead after "
                f"{self.silence_s:.0f} s of silence)"
            )
        stale = self.path.with_name(f"{self.path.name}.stale-{self._mine['token']}")
        try:
            self.path.rename(stale)
        except FileNotFoundError:
            return
        if self._owner(stale) == owner:
            self.say(f"{self.what}: taken over from {_name(owner)}, which has ended")
        else:  # somebody else was quicker, and this is theirs
            os.link(stale, self.path)
        stale.unlink()

    def _is_dead(self, owner: dict[str, Any], silent: float) -> bool:
        if silent > self.silence_s:
            return True
        if owner.get("host") == self._mine["host"]:
            try:
                return psutil.Process(owner["pid"]).create_time() != owner["started"]
            except psutil.NoSuchProcess:
                return True
            except (psutil.Error, TypeError, ValueError, KeyError):
                return False
        requeued = owner.get("job") and owner.get("job") == self._mine["job"]
        return bool(requeued) and owner.get("restart") != self._mine["restart"]

    def _owner(self, path: Path | None = None) -> dict[str, Any]:
        try:
            owner = json.loads((path or self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _touch(self) -> None:
        while not self._ended.wait(_TOUCH_EVERY_S):
            try:
                if self._owner() != self._mine:
                    return
                os.utime(self.path)
            except OSError:
                pass  # a file server that is away for a while; `require_held` is what decides


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    job = f", Slurm job {owner['job']}" if owner.get("job") else ""
    return f"process {owner.get('pid')} on {owner.get('host')}{job}"
