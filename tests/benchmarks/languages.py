"""How often `alm prepare --language=en` is wrong, on captions that people wrote.

    python -m tests.benchmarks.languages FOLDER data/opensounds/default

FOLDER holds Tux Paint's stamps (`dpkg-deb -x tuxpaint-stamps-default_*.deb FOLDER`): each has a
description in English and translations of it. The dataset gives the names of its sound effects.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.language import other_language
from input_pipeline.sources import open_source

# Written with Latin letters: other scripts tell themselves apart.
LANGUAGES = ("de", "fr", "es", "it", "nl", "pt", "da", "sv", "nb", "pl", "cs", "fi", "hu", "tr")
LANGUAGES += ("id", "ro")
EACH = 400


def stamps(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """English descriptions, and translations by language, each once."""
    english: dict[str, None] = {}
    found: dict[str, dict[str, None]] = {name: {} for name in LANGUAGES}
    for path in sorted(folder.rglob("*.txt")):
        first, *others = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        english[first.strip()] = None
        for line in others:
            match = re.fullmatch(r"([a-z]{2,3})(?:_\w+)?\.utf8=(.+)", line.strip())
            if match and match[1] in found:
                found[match[1]][match[2].strip()] = None
    translated = {
        name: sorted(text for text in texts if text not in english)[:EACH]
        for name, texts in found.items()
    }
    return sorted(filter(None, english)), translated


def main(argv: Sequence[str]) -> None:
    """Prints shares of captions called foreign, and the time of one."""
    folder, directory = argv
    english, translated = stamps(Path(folder))
    effects = {
        example["text"]
        for split in ("train", "validation", "test")
        for example in open_source(directory, split).metadata()
        if example["kind"] == "effect"
    }
    start, count = time.process_time(), 0
    for name, texts in (("sound effects", sorted(effects)), ("stamps", english)):
        wrong = [text for text in texts if other_language(text, "en")]
        count += len(texts)
        print(f"English, {name}: {len(wrong)} of {len(texts)} called foreign: {wrong}")
    asked: Counter[str] = Counter()
    known: Counter[str] = Counter()
    for text in (text for texts in translated.values() for text in texts):
        words = len(text.split())
        group = "1-3 words" if words < 4 else "4-7 words" if words < 8 else "8 words and more"
        asked[group] += 1
        known[group] += bool(other_language(text, "en"))
    for group, total in sorted(asked.items()):
        print(f"{len(LANGUAGES)} other languages, {group}: {known[group] / total:.0%} of {total}")
    count += asked.total()
    print(f"{1000 * (time.process_time() - start) / count:.2f} ms a caption")


if __name__ == "__main__":
    main(sys.argv[1:])
