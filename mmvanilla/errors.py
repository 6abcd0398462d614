"""The exception for mistakes that the user can correct."""


class UsageError(ValueError):
    """A wrong argument, config, file or state. Its message is one sentence that says how to fix it.

    The tools print the message alone, without a traceback, and exit with a code that is not 0.
    """
