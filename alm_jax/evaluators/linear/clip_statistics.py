"""A fixed description of a sound for the linear baseline: statistics of its log-mel, in numpy.

Deliberately apart from the JAX front end (`alm_jax.audio`): a mistake there must not move the
baseline that would show it.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray

from alm_jax.errors import UserError

MEL_BINS = 64
_WINDOW_SECONDS = 0.025
_HOP_SECONDS = 0.010
_FLOOR = 1e-6  # power of about one least significant bit of 16-bit sound in a mel band
_PERCENTILES = (0.1, 0.5, 0.9)
_SEGMENTS = 4
_CEPSTRA = 20


def log_mel(
    audio: ArrayLike, sample_rate: int = 16000, *, max_seconds: float = 10.0
) -> NDArray[np.float32]:
    """Natural logarithm of the power in 64 mel bands (HTK scale) from 40 Hz to the Nyquist rate.

    Hann window of 25 ms, hop of 10 ms, centred on the first sample, zeros beyond the ends.

    Args:
      audio: mono PCM [S], int16 (32767 is full scale) or float in [-1, 1], S >= 1.
      sample_rate: Hz.
      max_seconds: what lies beyond is left out.

    Returns:
      float32 [T, 64], T = 1 + S // hop.

    Raises:
      UserError: not one-dimensional, empty, or not finite.
    """
    samples = np.asarray(audio)
    if samples.ndim != 1 or not samples.size:
        raise UserError(f"a clip must be mono samples [S] with S >= 1, got {samples.shape}")
    full_scale = 32767.0 if samples.dtype == np.int16 else 1.0
    samples = samples[: round(max_seconds * sample_rate)].astype(np.float32) / np.float32(
        full_scale
    )
    if not np.isfinite(samples).all():
        raise UserError("a clip has NaN or infinite samples")
    window, filters = _analysis(sample_rate)
    width, hop = len(window), round(_HOP_SECONDS * sample_rate)
    samples = np.pad(samples, width // 2)
    frames = np.lib.stride_tricks.sliding_window_view(samples, width)[::hop] * window
    spectrum = scipy.fft.rfft(frames, 2 * (len(filters) - 1), axis=1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return np.log(power @ filters + np.float32(_FLOOR))


def clip_statistics(logmel: ArrayLike) -> NDArray[np.float32]:
    """Statistics over time that a linear model can use, whatever the length of the clip.

    Of every mel band: mean, standard deviation, 10th, 50th and 90th percentile, mean absolute and
    standard deviation of the frame differences, and the means of four equal parts of the clip. Of
    20 cepstra: mean, log standard deviation, log standard deviation of differences, and all
    correlations between them. Of the whole: length (also its logarithm), and maximum, mean,
    standard deviation and place of the maximum of the loudness curve.

    Args:
      logmel: [T, F] with T >= 1.

    Returns:
      float32 [11 F + 256].
    """
    mel = np.asarray(logmel, dtype=np.float32)
    if mel.ndim != 2 or not mel.size:
        raise UserError(f"a log-mel must have shape [frames >= 1, bands], got {mel.shape}")
    frames = len(mel)
    change = np.diff(mel, axis=0) if frames > 1 else np.zeros_like(mel)
    in_order = np.sort(mel, axis=0)
    bounds = np.linspace(0, frames, _SEGMENTS + 1)
    segments = [
        mel[int(low) : max(int(np.ceil(high)), int(low) + 1)].mean(axis=0)
        for low, high in pairwise(bounds)
    ]
    cepstra = mel @ _cosines(mel.shape[1])
    covariance = np.atleast_2d(np.cov(cepstra.T, bias=True)) if frames > 1 else np.zeros((20, 20))
    spread = np.diag(covariance)
    correlation = covariance / np.sqrt(1e-3 + np.outer(spread, spread))
    loudness = mel.mean(axis=1)
    parts = [
        mel.mean(axis=0),
        mel.std(axis=0),
        *(in_order[round(share * (frames - 1))] for share in _PERCENTILES),
        np.abs(change).mean(axis=0),
        change.std(axis=0),
        *segments,
        cepstra.mean(axis=0),
        np.log(1e-4 + np.sqrt(spread)),
        np.log(1e-4 + (change @ _cosines(mel.shape[1])).std(axis=0)),
        correlation[np.triu_indices(_CEPSTRA, 1)],
        [np.log(frames), frames / 100, loudness.max(), loudness.mean(), loudness.std()],
        [loudness.argmax() / frames],
    ]
    return np.concatenate(parts).astype(np.float32)


def statistics_of_clips(
    clips: Iterable[ArrayLike], sample_rate: int = 16000, *, max_seconds: float = 10.0
) -> NDArray[np.float32]:
    """`clip_statistics` of the `log_mel` of every clip.

    Args:
      clips: mono PCM arrays, as `log_mel` takes them.
      sample_rate: Hz.
      max_seconds: what lies beyond is left out.

    Returns:
      float32 [clips, K].
    """
    rows = [clip_statistics(log_mel(clip, sample_rate, max_seconds=max_seconds)) for clip in clips]
    if not rows:
        raise UserError("there are no clips to describe: is the split empty?")
    return np.stack(rows)


@lru_cache(maxsize=4)
def _analysis(sample_rate: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Window [width] and triangular mel filters [bins, 64] of a sample rate."""
    width = round(_WINDOW_SECONDS * sample_rate)
    size = 1 << (width - 1).bit_length()
    hertz = np.arange(size // 2 + 1) * sample_rate / size
    low, high = (2595 * np.log10(1 + f / 700) for f in (40.0, sample_rate / 2))
    edges = 700 * (10 ** (np.linspace(low, high, MEL_BINS + 2) / 2595) - 1)
    rising = (hertz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    return window.astype(np.float32), filters.astype(np.float32)


@lru_cache(maxsize=4)
def _cosines(bands: int) -> NDArray[np.float32]:
    """Cosine transform [bands, 20] that turns log-mel frames into cepstra."""
    place = (np.arange(bands)[:, None] + 0.5) / bands
    return (np.cos(np.pi * place * np.arange(_CEPSTRA)) / bands).astype(np.float32)
