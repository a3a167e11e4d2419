"""Frames of a waveform -> mel spectrogram: window, DFT and mel filters as matrix products.

Shapes: B batch, T frames, W window length, H samples of half a window, K frequency bins, F mel
bins.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from alm_jax.audio import mel
from alm_jax.audio.frontend_config import LogMelConfig

_PRECISION = lax.Precision.HIGHEST  # the default multiplies in bfloat16 on TPU and TF32 on GPU
# Leading bits kept of a frame's samples, counted from its loudest, and of a table's columns.
# Products of two such numbers are sums of integers below 2^24, which float32 adds without rounding.
_LEADING_BITS = 7


def frame_spectrum(frames: Array, cfg: LogMelConfig) -> Array:
    """Frames float32 [B, T, W] -> magnitude or power mel spectrogram float32 [B, T, F]."""
    if cfg.power == 1:
        real, imaginary = _transform(frames, cfg)
        # The floor keeps the gradient finite in silence.
        spectrum = jnp.sqrt(jnp.maximum(jnp.square(real) + jnp.square(imaginary), 1e-30))
    else:
        real, imaginary = _accurate_transform(frames, cfg)
        spectrum = jnp.square(real) + jnp.square(imaginary)
    return jnp.matmul(spectrum, _filters(cfg)[0], precision=_PRECISION)


def _transform(frames: Array, cfg: LogMelConfig) -> tuple[Array, Array]:
    """Real and imaginary part [B, T, K] of the windowed frames' DFT, to float32's rounding."""
    if cfg.remove_frame_mean:
        frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
    if cfg.preemphasis:
        previous = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = frames - cfg.preemphasis * previous
    cosine, sine = _half_dft(cfg)
    sums, differences = _halves(frames, cfg)
    real = jnp.matmul(sums, cosine.astype(np.float32), precision=_PRECISION)
    imaginary = jnp.matmul(differences, sine.astype(np.float32), precision=_PRECISION)
    return real, imaginary


def _accurate_transform(frames: Array, cfg: LogMelConfig) -> tuple[Array, Array]:
    """As `_transform`, with about 8 bits more: for power spectra, whose logarithm has no floor.

    A band 100 dB below the loudest of its frame is otherwise mostly rounding, and two programs that
    add in different orders hear different sounds. Samples and tables are split into their leading
    bits and the rest; the product of the leading bits, which is nearly all of the sum, is exact.
    Removing a frame's mean and pre-emphasis, which would round each sample, are in the tables.
    """
    leading = lax.stop_gradient(_leading(frames))
    rest = frames - leading
    if cfg.remove_frame_mean or cfg.preemphasis:
        both = _split_product(leading, rest, _full_dft(cfg))
        real, imaginary = jnp.split(both, 2, axis=-1)
        return real, imaginary
    cosine, sine = _half_dft(cfg)
    sums, differences = zip(_halves(leading, cfg), _halves(rest, cfg), strict=True)
    return _split_product(*sums, cosine), _split_product(*differences, sine)


def _leading(frames: Array) -> Array:
    """The leading bits of each sample: multiples of at most 2^-6 of its frame's loudest."""
    # In float32 the sum has no place for the lower bits, and taking the same away is exact.
    shift = jnp.max(jnp.abs(frames), axis=-1, keepdims=True) * 2.0 ** (24 - _LEADING_BITS)
    return (frames + shift) - shift


def _split_product(leading: Array, rest: Array, table: np.ndarray) -> Array:
    """(leading + rest) @ table: leading, rest [B, T, n], table float64 [n, K] -> [B, T, K]."""
    exponent = np.ceil(np.log2(np.maximum(np.abs(table).max(axis=0), 1e-30)))
    step = 2.0 ** (exponent - _LEADING_BITS)
    high = np.round(table / step) * step
    tables = np.concatenate([high, table - high], axis=1).astype(np.float32)
    exact, small = jnp.split(jnp.matmul(leading, tables, precision=_PRECISION), 2, axis=-1)
    return exact + (small + jnp.matmul(rest, table.astype(np.float32), precision=_PRECISION))


def _halves(frames: Array, cfg: LogMelConfig) -> tuple[Array, Array]:
    """Sums and differences [B, T, H] of the samples either side of the window's middle."""
    period = _window_period(cfg)
    half = (period + 1) // 2
    right = frames[..., half:]
    left = frames[..., period - cfg.window_length + 1 : period - half + 1][..., ::-1]
    return right + left, right - left


@functools.lru_cache(maxsize=32)
def _filters(cfg: LogMelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mel weights [K, F] float32 of the bins that any filter uses, and those bins' numbers [K]."""
    weights = mel.mel_filter_bank(
        sample_rate=cfg.filter_sample_rate or cfg.sample_rate,
        fft_length=cfg.fft_length,
        num_mels=cfg.num_mels,
        fmin=cfg.fmin,
        fmax=cfg.fmax,
        scale=cfg.mel_scale,
        shape=cfg.triangle,
        norm=cfg.filter_norm,
    )
    used = np.flatnonzero(weights.any(axis=1))
    bins = np.arange(used[0], used[-1] + 1)
    return weights[bins].astype(np.float32), bins


@functools.lru_cache(maxsize=32)
def _half_dft(cfg: LogMelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Windowed cosine and sine matrices [H, K] float64 for the right half of a frame.

    The window is symmetric about sample P / 2 (P is its period), and neither magnitude nor power
    depends on where time zero lies. With time zero there, the real part of the DFT sees only the
    sum of the samples either side, the imaginary part only their difference: half the products.
    """
    period = _window_period(cfg)
    n = np.arange((period + 1) // 2, cfg.window_length)
    cosine, sine = _windowed(n, cfg)
    if period % 2 == 0:
        cosine[0] *= 0.5  # the middle sample is paired with itself
    return cosine, sine


@functools.lru_cache(maxsize=32)
def _full_dft(cfg: LogMelConfig) -> np.ndarray:
    """Cosines beside sines [W, 2 K] float64, of what mean removal and pre-emphasis make of frames.

    Both are linear in the frame's samples, so that their transposes applied to the DFT's matrix are
    the same.
    """
    table = np.concatenate(_windowed(np.arange(cfg.window_length), cfg), axis=1)
    # y[0] = x[0] - c x[0] and y[n] = x[n] - c x[n - 1].
    following = np.concatenate([table[1:], np.zeros_like(table[:1])])
    following[0] += table[0]
    table = table - cfg.preemphasis * following
    return table - table.mean(axis=0) if cfg.remove_frame_mean else table


def _windowed(n: np.ndarray, cfg: LogMelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [len(n), K] of the bins used at samples n, under the window."""
    period = _window_period(cfg)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / period)
    angle = 2 * np.pi / cfg.fft_length * np.outer(n - period / 2, _filters(cfg)[1])
    return np.cos(angle) * window[:, None], np.sin(angle) * window[:, None]


def _window_period(cfg: LogMelConfig) -> int:
    return cfg.window_length - (1 if cfg.window == "hann_symmetric" else 0)
