"""Which language a caption is in, as far as a few words tell: py3langid (BSD, 4.6 MB, offline)."""

from __future__ import annotations

import functools
from typing import Any

from alm_jax.errors import UserError, did_you_mean

# A caption is in another language if that is so many times as probable. Short captions are names of
# things, which many languages share; see docs/data.md for what it rejects and misses.
_TIMES = 50.0


def check_language(code: str) -> None:
    """Makes sure that a language can be asked for.

    Raises:
      UserError: py3langid is not installed, or does not know the language.
    """
    codes = _identifier().labels
    if code not in codes:
        raise UserError(
            f"--language={code}: not the code of a language, such as en{did_you_mean(code, codes)};"
            f" known are {', '.join(sorted(codes))}"
        )


def other_language(text: str, code: str) -> str:
    """The code of the language that a text is clearly in instead of `code`; "" if it may be that.

    Args:
      text: a caption.
      code: of the language that is wanted, two or three letters (ISO 639).
    """
    ranked = _identifier().rank(text)
    found, probability = ranked[0]
    return found if probability > _TIMES * dict(ranked)[code] else ""


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid import langid
    except ImportError:
        raise UserError(
            "--language needs py3langid: pip install 'py3langid>=0.4' (the extra `language` of this"
            " project). Without it --script=latin tells writing systems apart"
        ) from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
