"""Regular expressions that users give for names of parameters and tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

from alm_jax.errors import UserError


def compiled(patterns: Iterable[str], key: str) -> list[re.Pattern[str]]:
    """The patterns, ready to search names with.

    Args:
      patterns: as the user gave them.
      key: config field or flag that holds them, for the error.

    Raises:
      UserError: one is no regular expression.
    """
    found = []
    for pattern in patterns:
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise UserError(f"{key}: {pattern!r} is no regular expression: {error}") from error
    return found
