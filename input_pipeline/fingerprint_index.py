"""Which clips of a set a clip meets: landmarks looked up, then compared sample by sample.

The index is three sorted arrays of 12 bytes a landmark together; a second of sound has about 140
landmarks (measured on OpenSounds), so ten seconds take 17 kB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.fingerprint import RATE, Fingerprint, same_recording

# A landmark of more clips than this (a steady tone) tells nothing, and costs the most to look up.
_COMMON = 256
# Landmarks that must agree on an offset before samples are compared: this many, and this share of
# those of the clip that has fewer.
_VOTES, _VOTES_SHARE = 3, 0.02
# Clips whose samples are compared for one that is looked up: those with the most votes.
_CANDIDATES = 16
# Part of the shorter clip, and seconds, of which one must be shared.
_SHARE, _SECONDS = 0.5, 3.0


class Match(NamedTuple):
    """A clip of the index that the clip looked up shares a recording with.

    Attributes:
      clip: position in the index.
      correlation: of the samples, 0..1 (`fingerprint.same_recording`).
      seconds: that both have.
    """

    clip: int
    correlation: float
    seconds: float


class Index:
    """Landmarks of a set of clips, sorted; `len()` is the number of clips."""

    def __init__(self, prints: Sequence[Fingerprint]) -> None:
        """Takes the fingerprints; their positions are what `Match.clip` says."""
        self._length = len(prints)
        landmarks = np.concatenate([np.zeros(0, np.uint32), *(p.landmarks for p in prints)])
        frames = np.concatenate([np.zeros(0, np.uint32), *(p.frames for p in prints)])
        clips = np.repeat(
            np.arange(len(prints), dtype=np.uint32), [len(p.landmarks) for p in prints]
        )
        self._sizes = np.array([len(p.landmarks) for p in prints])
        order = np.argsort(landmarks, kind="stable")
        self._landmarks, self._frames = landmarks[order], frames[order]
        self._clips = clips[order]

    def __len__(self) -> int:
        return self._length

    def candidates(self, query: Fingerprint) -> list[tuple[int, int]]:
        """Clips with landmarks in common at one offset, and those offsets in hops.

        An offset is how much later the clip of the index begins; at most two a clip, the best.
        """
        first = np.searchsorted(self._landmarks, query.landmarks, "left")
        count = np.searchsorted(self._landmarks, query.landmarks, "right") - first
        count[count > _COMMON] = 0
        total = int(count.sum())
        if total < _VOTES:
            return []
        # The places of all equal landmarks in the index, one run after the other.
        begin = np.cumsum(count) - count
        places = np.repeat(first - begin, count) + np.arange(total)
        offset = np.repeat(query.frames.astype(np.int64), count) - self._frames[places]
        # Adjacent hops count together: a cut lies anywhere within a hop.
        key = (self._clips[places].astype(np.int64) << 32) + offset + (1 << 31)
        keys, votes = np.unique(key, return_counts=True)
        joined = votes.copy()
        next_to = np.flatnonzero(np.diff(keys) == 1)
        joined[next_to] += votes[next_to + 1]
        fewer = np.minimum(len(query.landmarks), self._sizes[keys >> 32])
        good = np.flatnonzero(joined >= np.maximum(_VOTES, _VOTES_SHARE * fewer))
        found: dict[int, list[int]] = {}
        for place in good[np.argsort(-joined[good], kind="stable")]:
            clip = int(keys[place] >> 32)
            if clip not in found and len(found) == _CANDIDATES:
                continue
            offsets = found.setdefault(clip, [])
            if len(offsets) < 2:
                offsets.append(int(keys[place] & 0xFFFFFFFF) - (1 << 31))
        return [(clip, offset) for clip, offsets in found.items() for offset in offsets]


def matches(
    index: Index,
    query: Fingerprint,
    audio: Callable[[], np.ndarray],
    audio_of: Callable[[int], np.ndarray],
    *,
    least: float,
) -> list[Match]:
    """The clips of an index that share a recording with a clip, the most alike first.

    Args:
      index: of the set.
      query: the clip's landmarks.
      audio: gives its samples, float32 [S] at `fingerprint.RATE`; called only where needed.
      audio_of: the same of a clip of the index.
      least: correlation from which on it is the same recording.
    """
    best: dict[int, Match] = {}
    samples = None
    for clip, offset in index.candidates(query):
        samples = audio() if samples is None else samples
        other = audio_of(clip)
        correlation, seconds = same_recording(samples, other, offset)
        needed = min(_SECONDS, _SHARE * min(len(samples), len(other)) / RATE)
        if seconds >= needed and correlation >= max(least, best.get(clip, (0, 0.0))[1]):
            best[clip] = Match(clip, correlation, seconds)
    return sorted(best.values(), key=lambda match: -match.correlation)
