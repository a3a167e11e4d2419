"""Words of a caption, in any language.

A text is put in Unicode NFC form and lower case, a word is a run of letters, marks and digits (with
apostrophes inside: "don't" is one word), every Chinese or Japanese character is a word of its own,
and everything else only separates.
"""

import unicodedata
from functools import lru_cache

Words = tuple[str, ...]

# Scripts written without spaces of which every character is taken as a word.
_CHARACTER_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA")
_APOSTROPHES = "'\u2019"


def tokenise(text: str) -> Words:
    """Splits a caption into lower-case words (rules in the module's docstring).

    Args:
      text: any Unicode string.

    Returns:
      The words; empty if there are no letters, digits or marks.
    """
    words: list[str] = []
    current = ""
    for char in unicodedata.normalize("NFC", text).lower() + " ":
        kind = _kind(char)
        if kind == "letter" or (kind == "apostrophe" and current):
            current += "'" if kind == "apostrophe" else char
            continue
        if current.strip("'"):
            words.append(current.strip("'"))
        current = ""
        if kind == "character":
            words.append(char)
    return tuple(words)


@lru_cache(maxsize=1 << 16)
def _kind(char: str) -> str:
    """'letter', 'apostrophe', 'character' (a word by itself) or 'separator'."""
    if char in _APOSTROPHES:
        return "apostrophe"
    if unicodedata.category(char)[0] not in "LMN":
        return "separator"
    name = unicodedata.name(char, "")
    whole_word = name.startswith(_CHARACTER_SCRIPTS) and unicodedata.category(char) == "Lo"
    return "character" if whole_word else "letter"
