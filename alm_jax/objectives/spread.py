"""How far embeddings are spread out, to see a collapse: all clips at one point, or on one line.

Shapes: B batch, J joint width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def spread(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cosine of two different embeddings, and the effective rank of their covariance.

    Costs B x J x J, and never holds B x B; no gradient flows through it.

    Args:
      x: [B, J] float32 unit-norm, B at least 2 (one row has cosine 1).

    Returns:
      The mean cosine, 1 when all are the same and about 0 when they are spread evenly; and the
      participation ratio (sum of eigenvalues)^2 / sum of their squares: in how many directions
      they vary, from 1 to min(B - 1, J).
    """
    x = jax.lax.stop_gradient(x)
    count = x.shape[0]
    mean = x.mean(axis=0)
    cosine = (count * jnp.sum(mean**2) - 1.0) / max(count - 1, 1) if count > 1 else jnp.ones(())
    centred = x - mean
    covariance = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
    # Both are about 1e-14 when all are the same; then the rank is that of a point.
    rank = jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance**2), 1e-30)
    return cosine, rank
