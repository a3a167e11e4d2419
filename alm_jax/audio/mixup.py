"""Mixup: one training example made of two sounds and the labels of both.

As AudioMAE's `dataset.py` does it (after AST): half of the clips are mixed with one drawn uniformly
from the training set; the share of the first is drawn from Beta(10, 10); waveforms are mixed before
the front end, the second one cut or padded to the first one's length. The loader draws the second
clip (`data.mixup_probability`), the step draws the share.

Shapes: B batch, S samples, Y classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from alm_jax.audio.augment_ops import zero_padding


def mix_shares(keys: Array, other_length: Array, beta: float) -> Array:
    """How much of each mixture is the row's own clip.

    Args:
      keys: typed PRNG keys [B], one an example.
      other_length: int [B] valid samples of the second clip, 0 where there is none.
      beta: of Beta(beta, beta).

    Returns:
      float32 [B], 1 where there is no second clip.
    """
    drawn = jax.vmap(lambda key: jax.random.beta(key, beta, beta))(keys)
    return jnp.where(other_length > 0, drawn, 1.0)


def mix_waveforms(
    audio: Array, length: Array, other: Array, other_length: Array, share: Array
) -> Array:
    """Adds share * audio and (1 - share) * other, each without its mean.

    Without: where the shorter one ends, a constant offset would sound as a click.

    Args:
      audio: float32 [B, S].
      length: int [B] valid samples of `audio`.
      other: float32 [B, S].
      other_length: int [B] valid samples of `other`, 0 where there is none.
      share: float32 [B].

    Returns:
      float32 [B, S], zero past `length`; rows without a second clip are unchanged.
    """
    first, second = _centred(audio, length), _centred(other, other_length)
    mixed = zero_padding(share[:, None] * first + (1.0 - share)[:, None] * second, length)
    return jnp.where((other_length > 0)[:, None], mixed, audio)


def mix_labels(labels: Array, other: Array, share: Array) -> Array:
    """Targets float32 [B, Y] of two bool [B, Y]; a class of both clips keeps its whole weight."""
    return share[:, None] * labels + (1.0 - share)[:, None] * other


def _centred(audio: Array, length: Array) -> Array:
    mean = zero_padding(audio, length).sum(axis=1) / jnp.maximum(length, 1)
    return zero_padding(audio - mean[:, None], length)
