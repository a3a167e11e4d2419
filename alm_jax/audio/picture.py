"""Spectrograms as square pictures, as HTS-AT reads them: stretched in time, folded, cut.

Source: HTS-AT `model/htsat.py` (`reshape_wav2img`), torch.nn.functional.interpolate.
Shapes: B batch, V views, T frames, F mel bins, S side of the picture.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_CUBIC = -0.75  # PyTorch's coefficient of the cubic convolution


def stretch(mel: jax.Array, frames: jax.Array, length: int) -> jax.Array:
    """Resamples the valid frames to `length`, first on first and last on last.

    Args:
      mel: float32 [B, V, T, F].
      frames: int32 [B, V], valid frames, at least 1; what lies beyond is not read.
      length: frames of the result.

    Returns:
      float32 [B, V, length, F], as torch's bicubic interpolation with align_corners=True gives.
    """
    last = jnp.maximum(frames, 1)[..., None] - 1
    scale = last.astype(jnp.float32) / (length - 1)
    place = scale * jnp.arange(length, dtype=jnp.float32)
    before = jnp.floor(place).astype(jnp.int32)
    share = place - before
    out = jnp.zeros((*mel.shape[:2], length, mel.shape[3]), jnp.float32)
    for offset in (-1, 0, 1, 2):
        index = jnp.clip(before + offset, 0, last)
        weight = _cubic_weight(jnp.abs(share - offset))
        out += jnp.take_along_axis(mel, index[..., None], axis=2) * weight[..., None]
    return out


def _cubic_weight(distance: jax.Array) -> jax.Array:
    """Weight of a sample at a distance in 0..2."""
    a, d = _CUBIC, distance
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    far = ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    return jnp.where(d <= 1.0, near, far)


def fold(mel: jax.Array, parts: int) -> jax.Array:
    """[B, V, parts * S, F] -> [B, V, S, S], S = parts * F: parts of time one below the other.

    Rows are frequency within the part, columns time.
    """
    batch, views, length, mels = mel.shape
    quarters = mel.reshape(batch, views, parts, length // parts, mels)
    return quarters.swapaxes(-1, -2).reshape(batch, views, parts * mels, length // parts)


def picture_patches(picture: jax.Array, rows: int, columns: int) -> jax.Array:
    """[..., S, S] -> [..., S / rows, S // columns, rows * columns]; spare columns are left out.

    Pixels are in the order of a convolution's kernel, row by row.
    """
    *lead, height, width = picture.shape
    across = width // columns
    cut = picture[..., : across * columns].reshape(*lead, height // rows, rows, across, columns)
    return cut.swapaxes(-2, -3).reshape(*lead, height // rows, across, rows * columns)
