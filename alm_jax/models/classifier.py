"""A head over pooled audio states: what fine-tuning for labels puts on a pretrained encoder.

Source: facebookresearch/AudioMAE `models_vit.py` (mean over patches, `fc_norm`, `head`) and
`main_finetune_as.py` (initial weights of the head).
Shapes: B batch, N' states, D width, Y classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.models.layers import layer_norm
from alm_jax.models.poolers import Pooler


class Classifier(nnx.Module):
    """Pool, LayerNorm, linear."""

    def __init__(
        self,
        classes: int,
        width: int,
        *,
        pool: str = "mean",
        eps: float = 1e-6,
        init_std: float = 2e-5,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the head.

        Args:
          classes: Y.
          width: D of the states.
          pool: a kind of `Pooler`: "mean" over the patches, or "first", the class token.
          eps: of the LayerNorm.
          init_std: standard deviation of the initial weights; so small, that fine-tuning starts at
            a chance of one half for every label.
          dtype: of matmul inputs.
          rngs: source of the initial parameters.
        """
        self.dtype = dtype
        self.pool = Pooler(pool, width, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, eps=eps, rngs=rngs)
        self.predict = nnx.Linear(
            width,
            classes,
            kernel_init=nnx.initializers.normal(init_std),
            dtype=dtype,
            rngs=rngs,
            kernel_metadata={"axes": ("embed", None)},
            bias_metadata={"axes": (None,)},
        )

    def pooled(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, D] normalised means of states [B, N', D] with mask [B, N']."""
        return self.norm(self.pool(hidden, mask)).astype(self.dtype)

    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, Y] float32 logits of states [B, N', D] with mask [B, N']."""
        return self.predict(self.pooled(hidden, mask)).astype(jnp.float32)
