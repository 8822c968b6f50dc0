"""The one exception that means "the user can fix this", the exit codes, and the words for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# A user's mistake: starting again changes nothing.
EXIT_MISTAKE = 2
# Stopped by a signal with a checkpoint written: start me again (sysexits.h: EX_TEMPFAIL).
EXIT_START_AGAIN = 75
# Whatever else went wrong, as Python itself has it: starting again may help.
EXIT_FAILURE = 1


class UserError(Exception):
    """A mistake in what the user gave us: a config, a path, a file, a command.

    Its text is one line that says what is wrong, where, and what to do. Commands print that line
    and leave with its exit code; anything else that is raised is a bug and keeps its traceback.

    Attributes:
        only_here: Set when a single rank met the mistake while others carried on: then that rank
            tells it, and not rank 0 for all.
        exit_code: What the process ends with.
    """

    only_here = False
    exit_code = EXIT_MISTAKE


class StoppedError(UserError):
    """Nobody's mistake: a signal has stopped the work."""

    exit_code = EXIT_START_AGAIN


class LostRankError(UserError):
    """Other ranks of this job are gone or never came: nothing wrong here, and starting again may help."""

    exit_code = EXIT_FAILURE


class LostRank0Error(LostRankError):
    """As `LostRankError`, but rank 0 is not there to say so."""

    only_here = True


def no_such(what: str, name: str, known: Iterable[str]) -> str:
    """Say that there is no such section, key, subcommand, and which one may have been meant."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"
    return f"no such {what}; {hint}"
