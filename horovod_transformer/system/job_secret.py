"""The secret that the ranks of one job share and sign with: strangers reach a node's ports, too."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from horovod_transformer.errors import UserError

VARIABLE = "HOROVOD_TRANSFORMER_SECRET"
LEAST_CHARACTERS = 16
_FILE = Path(".config", "horovod_transformer", "secret")  # below the home folder


class JobSecret:
    """Signs what the ranks of a job tell each other; it is never sent itself.

    Args:
        text: The secret.
        job: The job's name, a part of whatever is signed: another job of the same user is a stranger.
    """

    def __init__(self, text: str, job: str) -> None:
        self._key, self.job = text.encode(), job

    def sign(self, *parts: Any) -> str:
        """Return a signature of these texts in this order: 64 hexadecimal digits."""
        # As JSON: no two lists of texts have the same bytes.
        return hmac.new(self._key, json.dumps([self.job, *parts]).encode(), hashlib.sha256).hexdigest()

    def has_signed(self, signature: object, *parts: Any) -> bool:
        """Whether a signature is the job's own; it and the texts may come from anyone."""
        return hmac.compare_digest(str(signature).encode(), self.sign(*parts).encode())


def new_secret() -> str:
    """Make a secret that nobody can guess."""
    return secrets.token_hex(32)


def read_secret(job: str) -> JobSecret:
    """Return this job's secret: HOROVOD_TRANSFORMER_SECRET, or what this user's file in the home folder says.

    `launch` and the Slurm scripts set the variable, anew at each start. The file is made when it is first
    wanted.

    Args:
        job: The job's name.

    Raises:
        UserError: The secret is too short, others can read the file, or it cannot be read or made.
    """
    text = os.environ.get(VARIABLE)
    if text is not None:
        if len(text) < LEAST_CHARACTERS:
            raise UserError(f"{VARIABLE} is too short to be a secret: {LEAST_CHARACTERS} characters at least")
        return JobSecret(text, job)
    try:
        path = Path.home() / _FILE
    except RuntimeError:
        raise UserError(
            f"there is no home folder to keep a secret in: set {VARIABLE} on every rank"
        ) from None
    try:
        return JobSecret(_read_or_make(path), job)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"{path}: {why}; set {VARIABLE} on every rank, and the file is not needed") from None


def _read_or_make(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole before it has its name: ranks that start together all read the same.
        aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w") as file:
                file.write(new_secret())
            with suppress(FileExistsError):
                os.link(aside, path)
        finally:
            aside.unlink()
    with open(path, encoding="ascii") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise UserError(f"{path}: others can read or write this secret; delete it, and a new one is made")
        text = file.read(1000).strip()
    if len(text) < LEAST_CHARACTERS:
        raise UserError(f"{path}: too short to be a secret; delete it, and a new one is made")
    return text
