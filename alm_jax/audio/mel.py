"""Mel filter banks: the scales, triangle shapes and normalisations that published front ends use.

Everything here is NumPy in float64, evaluated while tracing; the result becomes a constant of the
compiled program.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

MelScale = Literal["htk", "slaney"]
TriangleShape = Literal["mel", "hz"]
FilterNorm = Literal["slaney"] | None

# Slaney's Auditory Toolbox: linear (200/3 Hz a mel) to 1 kHz, then 27 steps for each factor 6.4.
_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_KNEE_HZ = 1000.0
_SLANEY_KNEE_MEL = _SLANEY_KNEE_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: np.ndarray | float, scale: MelScale) -> np.ndarray:
    """Converts frequencies in Hz (any shape) to mels.

    Args:
        hz: frequencies in Hz, >= 0.
        scale: `'htk'` is `1127 ln(1 + f / 700)`, which is also what Kaldi and TensorFlow call mel;
            `'slaney'` is linear to 1 kHz and logarithmic above (librosa's default).

    Returns:
        float64 array of the same shape.

    Raises:
        ValueError: unknown scale.
    """
    hz = np.asarray(hz, np.float64)
    if scale == "htk":
        return 1127.0 * np.log1p(hz / 700.0)
    if scale == "slaney":
        log_part = np.log(np.maximum(hz, _SLANEY_KNEE_HZ) / _SLANEY_KNEE_HZ) / _SLANEY_LOG_STEP
        return np.minimum(hz, _SLANEY_KNEE_HZ) / _SLANEY_HZ_PER_MEL + log_part
    raise ValueError(f"mel_scale={scale!r} is not known; use 'htk' or 'slaney'")


def mel_to_hz(mel: np.ndarray | float, scale: MelScale) -> np.ndarray:
    """Inverse of `hz_to_mel`.

    Args:
        mel: mels, any shape.
        scale: `'htk'` or `'slaney'`.

    Returns:
        float64 array of frequencies in Hz.

    Raises:
        ValueError: unknown scale.
    """
    mel = np.asarray(mel, np.float64)
    if scale == "htk":
        return 700.0 * np.expm1(mel / 1127.0)
    if scale == "slaney":
        growth = np.exp(_SLANEY_LOG_STEP * np.maximum(mel - _SLANEY_KNEE_MEL, 0.0))
        return np.minimum(mel, _SLANEY_KNEE_MEL) * _SLANEY_HZ_PER_MEL * growth
    raise ValueError(f"mel_scale={scale!r} is not known; use 'htk' or 'slaney'")


def mel_filter_bank(
    *,
    sample_rate: float,
    fft_length: int,
    num_mels: int,
    fmin: float,
    fmax: float,
    scale: MelScale,
    shape: TriangleShape,
    norm: FilterNorm,
) -> np.ndarray:
    """Weights that turn FFT bins into mel bands.

    Args:
        sample_rate: in Hz; bin `k` lies at `k * sample_rate / fft_length`.
        fft_length: FFT size in samples.
        num_mels: number of triangles.
        fmin: lower edge of the first triangle in Hz.
        fmax: upper edge of the last triangle in Hz. May exceed the Nyquist frequency, in which case
            the bands above it are empty (MusCALL trains that way).
        scale: mel scale on which the triangle corners are equally spaced.
        shape: axis on which the sides of a triangle are straight: `'mel'` (Kaldi, TensorFlow) or
            `'hz'` (librosa, torchaudio).
        norm: None for unit peaks, `'slaney'` for unit area in Hz.

    Returns:
        float64 [fft_length // 2 + 1, num_mels]. The DC row is zero. A triangle narrower than the
        bin spacing can be empty (band 3 of 128 in AudioMAE's setting); that is kept, not repaired,
        because published checkpoints saw it.

    Raises:
        ValueError: edges out of order, or an unknown scale, shape or norm.
    """
    if not 0 <= fmin < fmax:
        raise ValueError(f"need 0 <= fmin < fmax, got fmin={fmin}, fmax={fmax} (Hz)")
    if norm not in (None, "slaney"):
        raise ValueError(f"filter_norm={norm!r} is not known; use None or 'slaney'")
    mel_edges = np.linspace(hz_to_mel(fmin, scale), hz_to_mel(fmax, scale), num_mels + 2)
    bins_hz = np.arange(fft_length // 2 + 1) * (sample_rate / fft_length)
    if shape == "mel":
        position, edges = hz_to_mel(bins_hz, scale), mel_edges
    elif shape == "hz":
        position, edges = bins_hz, mel_to_hz(mel_edges, scale)
    else:
        raise ValueError(f"triangle={shape!r} is not known; use 'mel' or 'hz'")
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (position[:, None] - left) / (centre - left)
    falling = (right - position[:, None]) / (right - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    if norm == "slaney":
        edges_hz = mel_to_hz(mel_edges, scale)
        weights *= 2.0 / (edges_hz[2:] - edges_hz[:-2])
    return weights
