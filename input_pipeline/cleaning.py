"""What is kept out of a dataset: too short, silent, clipped, without caption, there twice."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.audio_files import SILENCE

# Full scale is 32767; rounding and a resampler's ripple leave clipped samples a step below.
_FULL_SCALE = 32766


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a clip must be like. All can be set on the command line.

    Attributes:
      min_seconds: shorter clips are rejected.
      max_seconds: longer ones are rejected (they are to be cut: columns of start and end).
      silence_db: clips whose peak stays below this are silent; dB of full scale.
      max_clipped: largest share of samples at full scale. Of the 261 recorded clips of OpenSounds'
        tiny tier one exceeds 4% (an explosion, 14%), five exceed 1%.
      script: captions must be in this writing system, such as latin; "" takes any.
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
        return "too_long", f"over --max-seconds={limits.max_seconds:g}; cut it by start and end"
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
    clips: Mapping[str, Sequence[tuple[str, str]]], kept_whole: Iterable[str] = ()
) -> dict[tuple[str, int], str]:
    """Finds clips whose PCM another clip has, over all splits.

    The one in the test split stays, then that in validation, then the first in the order given: a
    held-out clip is never lost to a training clip, and never stays in training.

    Args:
      clips: split -> (id, digest) of every clip.
      kept_whole: splits that lose no clip (a corpus' published evaluation).

    Returns:
      (split, position) of each clip to drop -> the id of the clip that stays.
    """
    first = [name for name in ("test", "validation") if name in clips]
    kept: dict[str, str] = {}
    drop: dict[tuple[str, int], str] = {}
    whole = set(kept_whole)
    for split in [*first, *(name for name in clips if name not in first)]:
        for position, (clip_id, digest) in enumerate(clips[split]):
            if digest in kept and split not in whole:
                drop[split, position] = kept[digest]
            else:
                kept.setdefault(digest, clip_id)
    return drop


def too_many(rejected: Sequence[Rejected], rows: int, limits: Limits) -> str | None:
    """The message for a build that lost more rows than it may; None if it did not."""
    if not rows or len(rejected) <= limits.max_rejected * rows:
        return None
    reasons = Counter(item.reason for item in rejected).most_common()
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons)
    shown = "".join(f"\n  {item}" for item in rejected[:5])
    return (
        f"{len(rejected)} of {rows} rows ({len(rejected) / rows:.0%}) were rejected, more than"
        f" --max-rejected={limits.max_rejected:g}: {counted}{shown}"
    )
