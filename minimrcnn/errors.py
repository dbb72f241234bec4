"""The one error that a person, not a programmer, is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the code is wrong: a file, an argument, a data set.

    The message says what was wrong, where (file, id, value), and what to do. The command line prints
    it without a traceback and exits with status 2.
    """
