"""The base of all errors that a command may end with."""


class BimkernError(Exception):
    """An error whose message is the one line that a user needs; a command prints it and ends with its exit code."""

    exit_code: int = 2  # of a mistake in what was asked for, as argument parsers use it


class RunError(BimkernError):
    """A run that was asked for correctly cannot continue."""

    exit_code = 1
