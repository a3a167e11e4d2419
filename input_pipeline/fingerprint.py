"""Acoustic fingerprints: what stays of a recording when it is re-encoded, cut, or made louder.

Landmarks as in A. Wang, "An Industrial-Strength Audio Search Algorithm" (ISMIR 2003): peaks of the
spectrogram, joined to pairs; a landmark is the two frequencies and the time between them, and it
lies somewhere in the clip. A recording that is found again has the same landmarks, all moved by
one offset. Differently from there, peaks of one frame are joined too, so that a click of 50
milliseconds has landmarks. `same_recording` compares two clips sample by sample where landmarks say
that they meet.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage
import soxr

RATE = 16000
FRAME = 1024  # 64 ms: half a hop of misalignment moves a peak little
HOP = 256  # 16 ms
# A peak is the loudest cell within these distances.
_PEAK_FRAMES, _PEAK_BINS = 5, 10
# Cells this much quieter than the loudest one are rounding of the codec or of int16.
_FLOOR = 1e-3
# Partners of a peak: of the next ones in time those within this distance.
_NEXT, _PAIR_FRAMES, _PAIR_BINS = 15, 31, 63
# A recording of ten minutes goes through in pieces, so that its spectrogram is never whole.
_PIECE_FRAMES = 4096
# Room for a shift beyond that of whole hops, in samples.
_SLACK = HOP + HOP // 2


class Fingerprint(NamedTuple):
    """Landmarks of a clip.

    Attributes:
      landmarks: uint32 [n], two frequencies and the time between them.
      frames: uint32 [n], the hop in which each begins.
    """

    landmarks: np.ndarray
    frames: np.ndarray


def fingerprint(pcm: np.ndarray, sample_rate: int) -> Fingerprint:
    """The landmarks of a clip, in the order of time.

    Args:
      pcm: int16 [S].
      sample_rate: Hz.
    """
    frames, bins = _peaks(at_rate(pcm, sample_rate))
    found = []
    for step in range(1, min(_NEXT, len(frames) - 1) + 1):
        apart = frames[step:] - frames[:-step]
        up = bins[step:] - bins[:-step]
        near = np.flatnonzero((apart <= _PAIR_FRAMES) & (np.abs(up) <= _PAIR_BINS))
        key = (bins[near] << 12) | ((up[near] + 64) << 5) | apart[near]
        found.append((key, frames[near]))
    if not found:
        return Fingerprint(np.zeros(0, np.uint32), np.zeros(0, np.uint32))
    landmarks, starts = (
        np.concatenate(part).astype(np.uint32) for part in zip(*found, strict=True)
    )
    order = np.argsort(starts, kind="stable")
    return Fingerprint(landmarks[order], starts[order])


def at_rate(pcm: np.ndarray, sample_rate: int) -> np.ndarray:
    """The clip at the fingerprint's rate: float32 [S], full scale 1."""
    audio = pcm.astype(np.float32) / 32768
    return audio if sample_rate == RATE else soxr.resample(audio, sample_rate, RATE, "MQ")


def _peaks(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local maxima of the spectrogram: frame and bin of each, int64 [n], in the order of time."""
    # Half a frame of silence on either side: a short clip has its peaks in the middle of frames.
    audio = np.pad(audio, (FRAME // 2, FRAME // 2 + HOP))
    windows = np.lib.stride_tricks.sliding_window_view(audio, FRAME)[::HOP]
    hann = np.hanning(FRAME + 1)[:-1].astype(np.float32)
    loudest = 0.0
    found = []
    for first in range(0, len(windows), _PIECE_FRAMES):
        before = min(first, _PEAK_FRAMES)
        piece = windows[first - before : first + _PIECE_FRAMES + _PEAK_FRAMES] * hann
        level = np.abs(scipy.fft.rfft(piece, axis=1))
        around = scipy.ndimage.maximum_filter(
            level, (2 * _PEAK_FRAMES + 1, 2 * _PEAK_BINS + 1), mode="constant"
        )
        here, bins = np.nonzero((level == around) & (level > 0))
        mine = (here >= before) & (here < before + _PIECE_FRAMES)
        here, bins = here[mine], bins[mine]
        found.append((here + first - before, bins, level[here, bins]))
        loudest = max(loudest, float(level.max()))
    frames, bins, levels = (np.concatenate(part) for part in zip(*found, strict=True))
    heard = levels > _FLOOR * loudest
    return frames[heard], bins[heard]


def same_recording(one: np.ndarray, other: np.ndarray, offset: int) -> tuple[float, float]:
    """How equal two clips are where they overlap, whatever the gain and the polarity.

    Args:
      one: float32 [S] at `RATE`.
      other: float32 [S] at `RATE`.
      offset: hops by which `other` begins later than `one` in the recording (negative: earlier).

    Returns:
      The highest correlation of the two within a hop and a half of the offset, 0..1; and the
      seconds that overlap. It is taken of the first difference (recordings of one microphone share
      its hum), once of all of it and once below 3.6 kHz, which low rates of either kind keep.
    """
    start = offset * HOP
    first = one[max(0, start) :]
    second = other[max(0, -start) :]
    length = min(len(first), len(second))
    if length < 2:
        return 0.0, length / RATE
    size = scipy.fft.next_fast_len(length + _SLACK, real=True)
    spectra = [scipy.fft.rfft(np.diff(part[:length]), size) for part in (first, second)]
    best = 0.0
    for hertz in (RATE / 2, 3600.0):
        kept = [spectrum[: int(size * hertz / RATE) + 1] for spectrum in spectra]
        energy = float(np.prod([np.vdot(part, part).real for part in kept])) ** 0.5
        if energy > 0:
            lags = scipy.fft.irfft(kept[0] * np.conj(kept[1]), size) * (size / 2)
            near = np.abs(np.concatenate([lags[: _SLACK + 1], lags[-_SLACK:]])).max()
            best = max(best, float(near) / energy)
    return min(best, 1.0), length / RATE
