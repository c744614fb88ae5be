"""The one exception that is shown to people as a sentence instead of a stack trace."""


class Error(Exception):
    """What is wrong and what to do about it, in one sentence.

    Raised for mistakes of the user and for what a host lacks. The command line prints it after
    ``timeshim:`` and exits with status 1.
    """
