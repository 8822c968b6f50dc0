"""The one exception that means "the user can fix this", and the exit codes."""

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
