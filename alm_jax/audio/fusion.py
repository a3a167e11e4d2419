"""Several views of a clip that is longer than what a tower reads: LAION-CLAP's feature fusion.

A long clip gives four spectrograms of `chunk` frames: the whole clip squeezed to that length, and
one excerpt each from its first, second and last third. A clip that fits gives itself alone.

Source: LAION-CLAP `laion_clap/training/data.py`, Hugging Face `feature_extraction_clap.py`
(`_random_mel_fusion`). The squeezing is bilinear without antialiasing, as there. They draw the
excerpts at random in evaluation too; here evaluation takes the middle one of each third, so that an
embedding is a function of the clip.
Shapes: B batch, T frames, F mel bins, C frames of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

VIEWS = 4


class Views(NamedTuple):
    """The views of each clip.

    Attributes:
      values: [B, 4, C, F]: squeezed whole, front, middle, back; a clip that fits has itself four
        times, as in the official batches.
      frames: [B] int32, valid frames of each view; C for long clips.
      longer: [B] bool, whether the clip was longer than C frames.
    """

    values: jax.Array
    frames: jax.Array
    longer: jax.Array


def fusion_views(
    mel: jax.Array, frames: jax.Array, chunk: int, keys: jax.Array | None = None
) -> Views:
    """Makes the views.

    Args:
      mel: float32 [B, T, F], T >= chunk.
      frames: int32 [B], frames that belong to each clip.
      chunk: C.
      keys: [B] PRNG keys, one a clip, for the places of the excerpts; None takes the middle ones.

    Returns:
      `Views`.
    """
    longer = frames > chunk
    starts = excerpt_starts(frames, chunk, keys)
    excerpts = jax.vmap(
        lambda row, at: jax.vmap(lambda a: jax.lax.dynamic_slice_in_dim(row, a, chunk))(at)
    )(mel, starts)
    whole = squeeze(mel, jnp.maximum(frames, chunk), chunk)
    long = jnp.concatenate([whole[:, None], excerpts], axis=1)
    short = jnp.broadcast_to(mel[:, None, :chunk], long.shape)
    values = jnp.where(longer[:, None, None, None], long, short)
    return Views(values, jnp.minimum(frames, chunk), longer)


def excerpt_starts(frames: jax.Array, chunk: int, keys: jax.Array | None) -> jax.Array:
    """[B, 3] int32 first frames of the excerpts.

    The frames where an excerpt can start are dealt into three parts as `numpy.array_split` does;
    a part that is empty (clips one or two frames too long) starts at 0.
    """
    places = jnp.maximum(frames - chunk + 1, 1)[:, None]
    part = jnp.arange(3)
    size = places // 3 + (part < places % 3)
    first = part * (places // 3) + jnp.minimum(part, places % 3)
    if keys is None:
        chosen = (size - 1) // 2
    else:
        draws = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
        chosen = jnp.minimum((draws * size).astype(jnp.int32), size - 1)
    return jnp.where(size > 0, first + chosen, 0)


def squeeze(mel: jax.Array, frames: jax.Array, chunk: int) -> jax.Array:
    """The first `frames` [B] of mel [B, T, F] resampled linearly to [B, chunk, F].

    Source: torch.nn.functional.interpolate(mode="bilinear", align_corners=False).
    """
    scale = frames.astype(jnp.float32)[:, None] / chunk
    place = jnp.maximum(scale * (jnp.arange(chunk, dtype=jnp.float32) + 0.5) - 0.5, 0.0)
    before = place.astype(jnp.int32)
    after = jnp.minimum(before + 1, frames[:, None] - 1)
    share = (place - before)[..., None]
    take = lambda index: jnp.take_along_axis(mel, index[..., None], axis=1)  # noqa: E731
    return take(before) * (1.0 - share) + take(after) * share
