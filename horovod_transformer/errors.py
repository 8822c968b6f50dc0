"""The one exception that means "the user can fix this", and the exit codes."""

# A user's mistake: starting again changes nothing.
EXIT_MISTAKE = 2
# Stopped by a signal with a checkpoint written: start me again (sysexits.h: EX_TEMPFAIL).
EXIT_START_AGAIN = 75


class UserError(Exception):
    """A mistake in what the user gave us: a config, a path, a file, a command.

    Its text is one line that says what is wrong, where, and what to do. Commands print that line
    and leave with exit code 2; anything else that is raised is a bug and keeps its traceback.

    Attributes:
        only_here: Set when a single rank met the mistake while others carried on: then that rank
            tells it, and not rank 0 for all.
    """

    only_here = False
