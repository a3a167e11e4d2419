"""From a pooled state to the joint space.

Shapes: B batch, D width, J joint width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.errors import UserError
from alm_jax.models.layers import linear

PROJECTIONS = ("linear", "mlp")


class MlpProjection(nnx.Module):
    """Dense, ReLU, Dense (LAION-CLAP's `audio_projection` and `text_projection`)."""

    def __init__(self, width: int, joint: int, *, init: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.up = linear(width, joint, ("embed", None), init=init, dtype=dtype, rngs=rngs)
        self.down = linear(joint, joint, (None, None), init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, D] -> [B, J]."""
        return self.down(jax.nn.relu(self.up(x)))


def projection(
    kind: str, width: int, joint: int, *, init: str, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Linear | MlpProjection:
    """The projection that `config.model.projection` names.

    Raises:
      UserError: an unknown kind.
    """
    if kind not in PROJECTIONS:
        raise UserError(f"model.projection={kind!r}: must be one of {PROJECTIONS}")
    if kind == "mlp":
        return MlpProjection(width, joint, init=init, dtype=dtype, rngs=rngs)
    return linear(width, joint, ("embed", None), init=init, dtype=dtype, rngs=rngs)
