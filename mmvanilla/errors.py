"""The one exception that the package raises for input its user can mend."""


class UsageError(ValueError):
    """A wrong argument, config, file or state; its message is one sentence with the mend.

    The tools print the message alone, without a traceback, and exit with a code that is not 0.
    """
