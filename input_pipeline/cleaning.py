"""What is kept out of a dataset: too short, silent, clipped, without caption, there twice."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.audio_files import SILENCE
from input_pipeline.language import other_language

# Full scale is 32767; rounding and a resampler's ripple leave clipped samples a step below.
_FULL_SCALE = 32766
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a clip must be like. All can be set on the command line.

    Attributes:
      min_seconds: shorter clips are rejected.
      max_seconds: longer ones are rejected (they are to be cut, `Settings.segment_seconds`).
      silence_db: clips whose peak stays below this are silent; dB of full scale.
      max_clipped: largest share of samples at full scale. Of the 261 recorded clips of OpenSounds'
        tiny tier one exceeds 4% (an explosion, 14%), five exceed 1%.
      script: captions must be in this writing system, such as latin; "" takes any.
      language: captions must not clearly be in another language than this one, such as en
        (`input_pipeline.language`); "" takes any.
      needs_caption: a clip without caption (and without label to make one of) is rejected.
      keep_duplicates: clips with the PCM of another one stay.
      keep_near_duplicates: clips that sound like another one, re-encoded or cut, stay.
      max_rejected: largest share of rejected rows; beyond it the build stops.
    """

    min_seconds: float = 0.1
    max_seconds: float = 600.0
    silence_db: float = round(20 * float(np.log10(SILENCE)), 1)
    max_clipped: float = 0.1
    script: str = ""
    language: str = ""
    needs_caption: bool = True
    keep_duplicates: bool = False
    keep_near_duplicates: bool = True
    max_rejected: float = 0.1


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A row that gave no example.

    Attributes:
      id: of the row.
      reason: one word, counted.
      detail: what was found, in words.
      where: table and line, or tar and member.
      split: where it would have gone.
    """

    id: str
    reason: str
    detail: str
    where: str = ""
    split: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where and self.where != self.id else ""
        return f"{place}{self.detail} ({self.reason})"

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a line of `rejected.jsonl`."""
        return dataclasses.asdict(self)


def clean_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions with single spaces, empty ones and mere punctuation dropped."""
    tidy = (" ".join(caption.split()) for caption in captions)
    return tuple(caption for caption in tidy if any(map(str.isalnum, caption)))


def script_of(text: str) -> str:
    """The writing system of most letters, as Unicode calls it (latin, cjk), "none" without any."""
    letters = Counter(_script(letter) for letter in text if letter.isalpha())
    return letters.most_common(1)[0][0] if letters else "none"


@functools.cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "unknown").split()[0].lower()


def foreign(text: str, limits: Limits) -> tuple[str, str] | None:
    """Judges a caption's writing system and language: reason and detail, or None for a good one."""
    if limits.script and (script := script_of(text)) not in (limits.script, "none"):
        return "other_script", f"{script} letters, --script={limits.script}: {text!r:.80}"
    if limits.language and (language := other_language(text, limits.language)):
        return "other_language", f"in {language}, --language={limits.language}: {text!r:.80}"
    return None


def check_pcm(pcm: np.ndarray, sample_rate: int, limits: Limits) -> tuple[str, str] | None:
    """Judges a decoded clip.

    Args:
      pcm: int16 [S].
      sample_rate: Hz.
      limits: what is asked of it.

    Returns:
      Reason and detail, or None for a good clip.
    """
    seconds = len(pcm) / sample_rate
    if seconds < limits.min_seconds:
        return "too_short", f"{seconds:.3f} s, --min-seconds={limits.min_seconds:g}"
    if seconds > limits.max_seconds:
        return (
            "too_long",
            f"over --max-seconds={limits.max_seconds:g}; --segment-seconds would cut it",
        )
    highest, lowest = int(pcm.max()), int(pcm.min())
    peak = max(highest, -lowest) / 32767
    if peak < 10 ** (limits.silence_db / 20):
        decibels = f"{20 * np.log10(peak):.0f} dB" if peak else "zero"
        return "silent", f"its peak is {decibels}, --silence-db={limits.silence_db:g}"
    clipped = 0.0
    if highest >= _FULL_SCALE or lowest <= -_FULL_SCALE:
        clipped = float(np.mean((pcm >= _FULL_SCALE) | (pcm <= -_FULL_SCALE)))
    if clipped > limits.max_clipped:
        return "clipped", f"{clipped:.0%} at full scale, --max-clipped={limits.max_clipped:g}"
    return None


def pcm_digest(pcm: np.ndarray) -> str:
    """A hash of int16 PCM [S], equal for equal recordings: 32 hexadecimal digits."""
    # Of the hashes in the standard library the fastest on processors with its instructions.
    return hashlib.sha256(np.ascontiguousarray(pcm).data).hexdigest()[:32]


def find_duplicates(
    digests: np.ndarray, ranks: np.ndarray, kept_whole: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds clips whose PCM another clip has, over all splits.

    The one of the lowest rank stays, and of those the first: a held-out clip is never lost to a
    training clip, and never stays in training.

    Args:
      digests: [n, 16] uint8, `pcm_digest` of every clip.
      ranks: int [n], of its split.
      kept_whole: bool [n], whether its split loses no clip (a corpus' published evaluation).

    Returns:
      Positions of the clips to drop, ascending, and for each the position of the one that stays.
    """
    high, low = np.ascontiguousarray(digests).view(np.uint64).T
    order = np.lexsort((ranks, low, high))  # stable: equal ones stay in the order given
    same = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
    run = np.concatenate([np.zeros(min(1, len(order)), int), np.cumsum(~same)])
    keeper = order[np.searchsorted(run, run)]
    dropped = (keeper != order) & ~kept_whole[order]
    by_place = np.argsort(order[dropped])
    return order[dropped][by_place], keeper[dropped][by_place]


class RejectedLog:
    """Rejected rows: all of them in a file, a line each, and counted.

    Attributes:
      by_split: split -> reason -> rows.
      first: the first few.
      unexpected: reason -> rows that are a sign of bad input.
      first_unexpected: the first few of these.
    """

    def __init__(self, path: Path) -> None:
        """Begins the file."""
        self._file = path.open("w", encoding="utf-8", errors="backslashreplace")
        self.by_split: dict[str, Counter[str]] = {}
        self.first: list[Rejected] = []
        self.unexpected: Counter[str] = Counter()
        self.first_unexpected: list[Rejected] = []

    def add(self, item: Rejected, *, expected: bool = False) -> None:
        """Writes and counts a row; `expected` if it speaks against nothing."""
        self._file.write(json.dumps(item.as_dict(), ensure_ascii=False) + "\n")
        self.by_split.setdefault(item.split, Counter())[item.reason] += 1
        if len(self.first) < _SHOWN:
            self.first.append(item)
        if not expected:
            self.unexpected[item.reason] += 1
            if len(self.first_unexpected) < _SHOWN:
                self.first_unexpected.append(item)

    @property
    def by_reason(self) -> Counter[str]:
        """Reason -> rows, over all splits."""
        return sum(self.by_split.values(), Counter())

    def shown(self) -> str:
        """The first few, a line each."""
        return "\n".join(f"  {item}" for item in self.first)

    def too_many(self, rows: int, limits: Limits) -> str | None:
        """The message for a build that lost more of its rows than it may; None if it did not."""
        lost = self.unexpected.total()
        rows -= self.by_reason.total() - lost
        if not rows or lost <= limits.max_rejected * rows:
            return None
        counted = ", ".join(f"{n} {reason}" for reason, n in self.unexpected.most_common())
        return (
            f"{lost} of {rows} rows ({lost / rows:.0%}) were rejected, more than"
            f" --max-rejected={limits.max_rejected:g}: {counted}"
            + "".join(f"\n  {item}" for item in self.first_unexpected)
        )

    def close(self) -> None:
        """Ends the file."""
        self._file.close()
