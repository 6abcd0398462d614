"""The exception for mistakes that the user can correct, and words about other exceptions."""

import traceback


class UsageError(ValueError):
    """A wrong argument, config, file or state. Its message is one sentence that says how to fix it.

    The tools print the message alone, without a traceback, and exit with a code that is not 0.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, which may be empty."""
    return (str(error).strip().splitlines() or [''])[0][:300]


def reason(error: BaseException) -> str:
    """Kind and message of an error in one line; for a bare assertion, what was asserted."""
    message = first_line(error).rstrip('.')
    if not message:
        lines = traceback.extract_tb(error.__traceback__)
        message = (lines[-1].line if lines else '') or ''
    return f'{type(error).__name__}: {message}'
