"""Attentional feature fusion of two pictures of one sound.

Source: LAION-CLAP `clap_module/feature_fusion.py` (`AFF`), after Dai et al. 2021, section 3.
Shapes: B batch, H x W places, C channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.models.batch_norm import BatchNorm
from alm_jax.models.layers import linear

REDUCTION = 4


class AttentionalFusion(nnx.Module):
    """AFF: x w + y (1 - w), doubled, where w looks at each place and at the whole picture."""

    def __init__(self, channels: int, *, init: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.local = _Squeeze(channels, init=init, dtype=dtype, rngs=rngs)
        self.whole = _Squeeze(channels, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, y: jax.Array, counts: jax.Array) -> jax.Array:
        """Joins two pictures [B, H, W, C]; rows where counts [B] is False move no statistics."""
        both = (x + y).astype(jnp.float32)
        weight = counts.astype(jnp.float32)[:, None, None, None]
        pooled = both.mean(axis=(1, 2), keepdims=True)
        share = jax.nn.sigmoid(self.local(both, weight) + self.whole(pooled, weight))
        return (2.0 * x * share + 2.0 * y * (1.0 - share)).astype(x.dtype)


class _Squeeze(nnx.Module):
    """Dense, batch norm, ReLU, Dense, batch norm: C -> C / 4 -> C."""

    def __init__(self, channels: int, *, init: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        few, plain = channels // REDUCTION, (None, None)
        self.down = linear(channels, few, plain, init=init, dtype=dtype, rngs=rngs)
        self.down_norm = BatchNorm(few)
        self.up = linear(few, channels, plain, init=init, dtype=dtype, rngs=rngs)
        self.up_norm = BatchNorm(channels)

    def __call__(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.down_norm(self.down(x), weight))
        return self.up_norm(self.up(x), weight)
