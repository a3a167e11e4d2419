"""What the verbs that take audio files share.

Finding the files, loading the model quietly, saying what was skipped. Importing this module
is cheap; JAX comes with `load_model`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from alm_jax.errors import UserError

if TYPE_CHECKING:
    from alm_jax.inference.model import Model
    from input_pipeline.audio_files import AudioError


def positive_int(text: str) -> int:
    """An argument's value as an integer of at least 1 (for argparse's `type`)."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


# argparse names the type in its message.
positive_int.__name__ = "positive integer"


def find_audio(arguments: Iterable[str]) -> tuple[list[str], list[AudioError]]:
    """Expands folders among `arguments` to the audio files in them.

    Args:
      arguments: paths; a file is taken whatever its suffix, a folder is searched to its depths.

    Returns:
      The files in the order given, each once, and an error for each folder without any.
    """
    from input_pipeline.audio_files import AUDIO_SUFFIXES, AudioError, find_audio_files

    found: dict[str, None] = {}
    problems = []
    for argument in arguments:
        if not os.path.isdir(argument):
            found[argument] = None
            continue
        files = [os.fspath(path) for path in find_audio_files(argument)]
        found.update(dict.fromkeys(files))
        if not files:
            suffixes = " ".join(sorted(AUDIO_SUFFIXES))
            detail = f"no audio file in this folder (looked for {suffixes})"
            problems.append(AudioError(argument, "empty", detail))
    return list(found), problems


def load_model(folder: str) -> Model:
    """`alm_jax.load`, without the notes of orbax and absl that tell a user of a verb nothing."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    import alm_jax

    return alm_jax.load(folder)


def report_skipped(verb: str, skipped: Sequence[AudioError], silent: Sequence[str] = ()) -> None:
    """Names on stderr the files that could not be used, with reasons, and those that are silent."""
    for error in skipped:
        print(f"alm {verb}: skipped {error}", file=sys.stderr)
    for path in silent:
        print(f"alm {verb}: note: {path}: silent, never above -72 dB", file=sys.stderr)


def require_some(usable: int, skipped: Sequence[AudioError], purpose: str) -> None:
    """Ends a verb with status 2 where not one file could be used.

    Raises:
      UserError: `usable` is 0.
    """
    if not usable:
        raise UserError(
            f"none of {len(skipped)} files or folders could be {purpose}; the reasons are above"
        )
