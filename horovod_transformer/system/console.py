"""Progress bars and lines for people, who may have left while the work goes on."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tqdm import tqdm

# Seconds between progress lines where there is no terminal to draw a bar on.
LINE_INTERVAL_S = 15.0
# How a line begins that is told however quiet a command is to be, and its colour: red, yellow.
_URGENT = {"error:": 31, "warning:": 33}
QUIET, USUAL, VERBOSE = -1, 0, 1
_verbosity = USUAL


def set_verbosity(level: int) -> None:
    """Say no more from now on than QUIET, USUAL or VERBOSE allows: a command's `-q` and `-v`."""
    global _verbosity
    _verbosity = level


def is_quiet() -> bool:
    """Whether only results, warnings and errors are wanted."""
    return _verbosity == QUIET


def is_verbose() -> bool:
    """Whether everything is wanted that there is to say."""
    return _verbosity == VERBOSE


class ProgressBar:
    """Counts steps towards a total, on stderr, with a few figures beside.

    Args:
        title: What is being done.
        total: Steps in all.
        start: Steps done before.
        unit: What a step is called.
    """

    def __init__(self, title: str, total: int, start: int = 0, unit: str = "update") -> None:
        self._title, self._total, self._start, self._unit = title, total, start, unit
        self._done = start
        self._began = self._last_line = time.monotonic()
        self._bar: tqdm | None = None
        # Under horovodrun a terminal shows each redraw as a line of its own, `[0]<stderr>:` before it; but
        # stderr is a pipe there, so lines are what it gets.
        if sys.stderr is not None and sys.stderr.isatty() and not is_quiet():
            self._bar = tqdm(
                total=total, initial=start, desc=title, unit=unit, mininterval=0.5, dynamic_ncols=True
            )

    def advance(self, done: int, **figures: str) -> None:
        """Show that `done` steps are done, and the figures by name."""
        if self._bar is not None:
            with outliving_readers(sys.stderr):
                self._bar.set_postfix(figures, refresh=False)
                self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        if self._bar is None and (now - self._last_line >= LINE_INTERVAL_S or done == self._total):
            self._last_line = now
            left = (self._total - done) * (now - self._began) / max(1, done - self._start)
            shown = "".join(f", {name} {value}" for name, value in figures.items())
            narrate(
                f"{self._title}: {self._unit} {done}/{self._total}{shown}, {tqdm.format_interval(left)} left",
                sys.stderr,
            )

    def message(self, text: str, always: bool = False) -> None:
        """Print a line above the bar; one that is not `always` told is left out where `narrate` would."""
        if not always and not _is_told(text):
            return
        with outliving_readers(sys.stderr):
            if self._bar is not None:
                self._bar.clear()
        tell(text)
        with outliving_readers(sys.stderr):
            if self._bar is not None:
                self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            with outliving_readers(sys.stderr):
                self._bar.close()
            self._bar = None


@contextmanager
def telling_time(doing: str) -> Iterator[None]:
    """Within this context, which says nothing itself, a line now and then shows that the work goes on.

    Args:
        doing: What is being done: `calibrating`.
    """
    began, over = time.monotonic(), threading.Event()

    def tell_time() -> None:
        while not over.wait(LINE_INTERVAL_S):
            narrate(f"{doing}: {time.monotonic() - began:.0f} s so far", sys.stderr)

    thread = threading.Thread(target=tell_time, daemon=True, name="telling time")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def counted(number: int, thing: str, plural: str = "") -> str:
    """A number with what it counts: `1 process`, `1,184 updates`.

    Args:
        number: How many.
        thing: What one of them is called.
        plural: What several are called, if not that with an s.
    """
    return f"{number:,} {thing if number == 1 else plural or thing + 's'}"


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print a line on stdout or another stream; if nobody takes it any more, carry on."""
    stream = stream or sys.stdout
    with outliving_readers(stream):
        print(_highlighted(text, stream), file=stream, flush=True)


def narrate(text: str, stream: TextIO | None = None) -> None:
    """`tell` of what goes on: with `-q` only warnings and errors."""
    if _is_told(text):
        tell(text, stream)


def _is_told(text: str) -> bool:
    return not is_quiet() or text.startswith(tuple(_URGENT))


def _highlighted(text: str, stream: TextIO) -> str:
    for word, colour in _URGENT.items():
        if text.startswith(word):
            return coloured(word, colour, stream) + text.removeprefix(word)
    return text


def coloured(text: str, colour: int, stream: TextIO) -> str:
    """A text in one of the terminal's colours (31: red, 33: yellow), where the stream shows colours.

    FORCE_COLOR and NO_COLOR (https://no-color.org) decide, if they are set to anything; else a terminal does.
    """
    forced = os.environ.get("FORCE_COLOR", "")
    if os.environ.get("NO_COLOR") or forced == "0":
        return text
    if forced or (stream.isatty() and os.environ.get("TERM") != "dumb"):
        return f"\x1b[1;{colour}m{text}\x1b[0m"
    return text


def make_streams_take_all() -> None:
    """From now on whatever is said can be: to a closed stream, or in letters that a terminal lacks (`?`)."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file opened gets this number, and what C libraries print is written into it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr escapes them by itself
        sys.stdout.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):  # what is typed may be in other letters, too
        sys.stdin.reconfigure(errors="replace")


def give_up_on_output() -> bool:
    """Whether stdout takes no more; then it takes everything from now on and keeps nothing."""
    try:
        print(flush=True)  # what is not buffered leaves nothing to flush
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False


@contextmanager
def outliving_readers(stream: TextIO) -> Iterator[None]:
    """Within this context a stream may fail: its reader has left, its terminal is gone, its disk is full."""
    try:
        yield
    except OSError as error:
        # What the stream has kept would fail again at the end of the program, so it goes nowhere.
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            number = stream.fileno()
            before = os.dup(number)
            os.dup2(nowhere.fileno(), number)
            stream.flush()
            if error.errno not in (errno.EPIPE, errno.EIO):  # a reader does not come back; room may
                os.dup2(before, number)
            os.close(before)
