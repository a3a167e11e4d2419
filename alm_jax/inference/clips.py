"""Clips in any form -> windows of int16 PCM at the model's rate.

A clip is a file or an array of any length. It passes through the same mono mix, resampling and
16-bit rounding as in `alm prepare`, so that a file gets the very embedding that it would have as an
example of a dataset. A long clip is cut into consecutive windows, and a file is never held whole:
in memory is one stretch of it, and the windows that wait for their batch.

Shapes: S samples, C channels, W samples of a window.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import soxr

from alm_jax.errors import UserError
from input_pipeline.audio_files import INT16_SCALE, AudioError, read_audio, to_int16

Clip: TypeAlias = str | os.PathLike[str] | np.ndarray

# The last window of a long clip is dropped if it is shorter than this share of a window: 0.3 s
# after 10 s say little, and their embedding is the noisiest. The PyTorch export does the same.
MIN_LAST_SHARE = 0.1
# A file is decoded this much at a time (10 minutes at 16 kHz: 38 MB), each stretch with a margin on
# both sides that covers the resampler's filter, so that the joints are inaudible: whole seconds
# start at a whole sample at every rate.
_STRETCH_SECONDS = 600
_MARGIN_SECONDS = 1
# More columns than this and the array is [channels, samples]; libsndfile's own limit is 1024.
_MAX_CHANNELS = 64
# Full scale is 1.0. Files overshoot a little; beyond 40 dB the samples are integers in disguise.
_MAX_FLOAT = 100.0


def as_clips(clips: Any) -> list[Clip]:
    """Returns a list of clips, whether one or several were given.

    Raises:
      UserError: something in it is neither a path nor an array.
    """
    if isinstance(clips, (str, os.PathLike)) or hasattr(clips, "__array__"):
        clips = [clips]
    result: list[Clip] = []
    for number, clip in enumerate(clips):
        if isinstance(clip, (str, os.PathLike)):
            result.append(clip)
        elif hasattr(clip, "__array__"):
            result.append(np.asarray(clip))
        else:
            raise UserError(
                f"clip {number} is a {type(clip).__name__}: give the path of an audio file, or an"
                " array [samples] or [samples, channels] with sample_rate=..."
            )
    return result


def clip_name(clip: Clip, number: int) -> str:
    """What messages call a clip: its path, or its place among the arrays given."""
    return f"array {number}" if isinstance(clip, np.ndarray) else os.fspath(clip)


def pcm(clip: np.ndarray, from_rate: float | None, to_rate: int, name: str) -> np.ndarray:
    """Mono int16 [S'] at `to_rate` Hz of an array at `from_rate` Hz, S' >= 1.

    Args:
      clip: [S] or [S, C]; float with full scale 1.0, or int16.
      from_rate: its sample rate in Hz.
      to_rate: the model's sample rate in Hz.
      name: what errors call it.

    Raises:
      UserError: no sample rate, or a shape, type or scale that is no audio.
      AudioError: no samples (`empty`), NaN or infinite samples (`non_finite`).
    """
    if from_rate is None:
        raise UserError(
            f"{name}: an array says nothing of its sample rate; give sample_rate=... (Hz)"
        )
    if not from_rate > 0 or not np.isfinite(from_rate):
        raise UserError(f"sample_rate={from_rate!r} must be a positive number (Hz)")
    if clip.ndim not in (1, 2):
        raise UserError(f"{name} has shape {clip.shape}; give [samples] or [samples, channels]")
    if clip.ndim == 2 and clip.shape[1] > _MAX_CHANNELS:
        raise UserError(
            f"{name} has shape {clip.shape}, which reads as {clip.shape[1]} channels; arrays are"
            " [samples, channels]: transpose it"
        )
    if clip.size == 0:
        raise AudioError(name, "empty", f"it has no samples (shape {clip.shape})")
    if clip.dtype != np.int16 and clip.dtype.kind != "f" and clip.dtype.name != "bfloat16":
        raise UserError(
            f"{name} holds {clip.dtype}; give int16, or floats in [-1, 1] (divide wider integers by"
            " their full scale)"
        )
    if clip.dtype == np.int16 and clip.ndim == 1 and from_rate == to_rate:
        return clip
    # Without a float copy of all channels: 10 minutes of 8 channels at 192 kHz would take 3.7 GB.
    mono = clip.astype(np.float32) if clip.ndim == 1 else clip.mean(axis=1, dtype=np.float32)
    if clip.dtype == np.int16:
        mono /= np.float32(INT16_SCALE)
    peak = float(np.maximum(mono.max(), -mono.min()))
    if not np.isfinite(peak):
        raise AudioError(name, "non_finite", "it holds NaN or infinite samples")
    if peak > _MAX_FLOAT:
        raise UserError(
            f"{name} reaches {peak:g}, but full scale of floats is 1.0; divide it by its full scale"
            " (32768 for what was int16)"
        )
    if from_rate != to_rate:
        first = mono[:1]
        mono = soxr.resample(mono, from_rate, to_rate)
        mono = mono if len(mono) else first
    return to_int16(mono)


def pcm_blocks(
    clip: Clip, from_rate: float | None, to_rate: int, name: str, max_samples: int | None = None
) -> Iterator[np.ndarray]:
    """Yields mono int16 [S'] at `to_rate` Hz, one stretch of the clip after the other.

    Args:
      clip: path, or array (see `pcm`).
      from_rate: the array's sample rate in Hz; files know their own.
      to_rate: the model's sample rate in Hz.
      name: what errors call it.
      max_samples: read no more than the first so many (at `to_rate`).

    Raises:
      AudioError: the clip cannot be used; perhaps only after some of it was yielded.
      UserError: see `pcm`.
    """
    if isinstance(clip, np.ndarray):
        yield pcm(clip, from_rate, to_rate, name)[:max_samples]
        return
    if max_samples is not None:
        # The margin keeps the resampler's fading end out of the window.
        seconds = max_samples / to_rate + _MARGIN_SECONDS
        yield to_int16(read_audio(clip, sample_rate=to_rate, max_seconds=seconds))[:max_samples]
        return
    margin = _MARGIN_SECONDS * to_rate
    stretch = _STRETCH_SECONDS * to_rate
    start = 0
    while True:
        before = margin if start else 0
        try:
            audio = read_audio(
                clip,
                sample_rate=to_rate,
                start_seconds=float(start - (_MARGIN_SECONDS if start else 0)),
                max_seconds=float(_STRETCH_SECONDS + _MARGIN_SECONDS * (2 if start else 1)),
            )
        except AudioError as error:
            # Damaged just behind the last stretch: like any damage, it ends the file there.
            if start and error.reason in ("empty", "unreadable"):
                return
            raise
        last = len(audio) < before + stretch + margin
        block = audio[before:] if last else audio[before : before + stretch]
        if len(block):
            yield to_int16(block)
        if last:
            return
        start += _STRETCH_SECONDS


def windows(blocks: Iterator[np.ndarray], window: int) -> Iterator[np.ndarray]:
    """Cuts a stream of blocks into consecutive windows of W = `window` samples.

    Yields int16 [W], and the rest [<= W] at the end; a rest shorter than `MIN_LAST_SHARE` of W is
    dropped unless it is all there is.
    """
    rest = np.zeros(0, np.int16)
    yielded = False
    for block in blocks:
        rest = np.concatenate([rest, block]) if len(rest) else block
        whole = len(rest) // window
        for number in range(whole):
            yield rest[number * window : (number + 1) * window]
            yielded = True
        rest = rest[whole * window :]
    if len(rest) and (not yielded or len(rest) >= MIN_LAST_SHARE * window):
        yield rest
