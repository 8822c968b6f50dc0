"""Paths as users give them: `~` means home everywhere, and what cannot be a path is one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from horovod_transformer.errors import UserError

DEFAULT_CONFIG = "configs/config.yaml"
# In a folder that `horovod-transformer new` has made, its own config comes first.
FOLDER_CONFIG = "config.yaml"


def default_config() -> str:
    """The config that a command takes where none is named: the working folder's own, else the default one."""
    return FOLDER_CONFIG if Path(FOLDER_CONFIG).is_file() else DEFAULT_CONFIG


def user_path(text: str | Path, key: str) -> Path:
    """Return a path that a user gave, with `~` and `~name` expanded; it need not exist.

    Args:
        text: The path.
        key: The config key or option it came from, for the message.

    Raises:
        UserError: No such user's home, a name too long, a character that no path has, or a folder
            on the way that may not be looked into.
    """
    try:
        path = Path(text).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except RuntimeError:
        raise UserError(f"{readable(text)}: there is no such user, so no such home folder ({key})") from None
    except ValueError:
        raise UserError(f"{readable(text)}: is no path: it has a NUL character ({key})") from None
    except OSError as error:
        raise UserError(f"{readable(text)}: cannot be looked at: {error.strerror} ({key})") from None
    return path


def path_of(option: str) -> Callable[[str], str]:
    """Make argparse's `type` for an option that names a file or folder: `~` expanded, else as it is typed."""

    def read(text: str) -> str:
        user_path(text, option)
        return os.path.expanduser(text)  # as text: `auto`, `-` and nothing at all have meanings of their own

    return read


def readable(path: str | Path) -> str:
    """Return a path for people and JSON: on one line, and in UTF-8 whatever its bytes are."""
    try:
        text = os.fsencode(str(path)).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        text = str(path).encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= 200 else f"{text[:120]}…{text[-60:]}"
