"""Errors that a user can mend, and the search for the name that was meant."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: a wrong config key, a file that is not audio, a missing folder.

    The command line prints the message alone and exits with status 2, so the message must stand by
    itself: which file or key, the value found, and what to do about it. A bug in this package must
    never be raised as a `UserError`; it deserves its traceback.
    """


class ConfigError(UserError):
    """A config that cannot be found or read, an unknown key, or a value of the wrong type."""


def closest(word: str, options: Iterable[str], limit: int = 3) -> list[str]:
    """Returns up to `limit` of `options` that resemble `word`, best first."""
    return difflib.get_close_matches(word, list(options), n=limit, cutoff=0.6)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Returns `"; did you mean 'x' or 'y'?"`, or `""` where nothing resembles `word`."""
    matches = closest(word, options)
    if not matches:
        return ""
    return f"; did you mean {' or '.join(repr(match) for match in matches)}?"
