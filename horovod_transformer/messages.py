"""Lines for people, who may have left while the work goes on."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print a line on stdout or another stream; if nobody takes it any more, carry on."""
    stream = stream or sys.stdout
    with outliving_readers(stream):
        print(text, file=stream, flush=True)


def replace_unshowable() -> None:
    """From now on a terminal that cannot show a character gets a question mark, not a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def outliving_readers(stream: TextIO) -> Iterator[None]:
    """Within this context a stream may fail: its reader has left, its terminal is gone, its disk is full."""
    try:
        yield
    except OSError as error:
        # A disk may have room again. A reader does not come back: what is left would fail again at the end.
        if error.errno in (errno.EPIPE, errno.EIO):
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
