"""Captions and example ids of OpenSounds rows."""

from __future__ import annotations

from collections.abc import Iterable

from input_pipeline.opensounds.index import Row

LANGUAGES = {
    "be": "Belarusian",
    "bg": "Bulgarian",
    "ca": "Catalan",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "en_GB": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "ga": "Irish",
    "gl": "Galician",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "lt": "Lithuanian",
    "ml": "Malayalam",
    "nb": "Norwegian Bokmål",
    "nds": "Low German",
    "nl": "Dutch",
    "nn": "Norwegian Nynorsk",
    "pl": "Polish",
    "pt": "Portuguese",
    "pt_BR": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sl": "Slovenian",
    "sr": "Serbian",
    "sv": "Swedish",
    "uk": "Ukrainian",
    "wa": "Walloon",
    "zh_TW": "Chinese",
}

# In these packages the text is the English concept while the voice speaks the row's language.
CONCEPT_PACKAGES = frozenset(("ktuberling-data", "hedgewars-data"))


def caption(row: Row) -> str:
    """The training caption of a row.

    Speech reads ``a person says in French: Un bison.``, or ``a person says in Catalan the word for:
    ball`` where only the English concept is known; everything else is the row's own text.

    Raises:
      ValueError: the row's language has no name here.
    """
    if row.kind != "speech":
        return row.text
    if row.lang not in LANGUAGES:
        raise ValueError(f"{row.package}: {row.path}: lang={row.lang!r} has no name in LANGUAGES")
    language = LANGUAGES[row.lang]
    if row.package in CONCEPT_PACKAGES and language != "English":
        return f"a person says in {language} the word for: {row.text}"
    return f"a person says in {language}: {row.text}"


def with_ids(rows: Iterable[Row]) -> list[tuple[str, Row]]:
    """Gives every row a unique, stable id: ``package/path``, ``@2`` for a second text."""
    seen: dict[str, int] = {}
    result = []
    for row in rows:
        name = f"{row.package}/{row.path}"
        seen[name] = seen.get(name, 0) + 1
        result.append((name if seen[name] == 1 else f"{name}@{seen[name]}", row))
    return result
