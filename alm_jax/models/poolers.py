"""Pooling of hidden states into one vector: learned-query attention, mean, first token.

Shapes: B batch, N tokens, D width, H heads.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.models.layers import attend, embedding, linear

POOLERS = ("attention", "mean", "first", "first_tanh")


class Pooler(nnx.Module):
    """One vector per sequence.

    kind "attention" is Cacophony's pooler: a learned query of H heads attends to the states. The
    audio pooler has an output Dense and 8 heads, the text pooler one head and no output Dense.
    "mean" averages the valid states, "first" takes the first one, "first_tanh" is BERT's and
    RoBERTa's `pooler_output`: Dense and tanh on the first one.
    """

    out: nnx.Linear | None = None

    def __init__(
        self,
        kind: str,
        width: int,
        *,
        heads: int = 1,
        output: bool = True,
        init: str = "lecun",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if kind not in POOLERS:
            raise ValueError(f"pooler is {kind!r}; it must be one of {POOLERS}")
        self.kind = kind
        if kind == "attention" and width % heads:
            raise ValueError(f"{heads} heads of a pooler do not divide a width of {width}")
        self.heads = heads
        if kind == "first_tanh":
            self.out = linear(width, width, ("embed", None), init=init, dtype=dtype, rngs=rngs)
        if kind == "attention":
            axes = ("embed", "heads")
            self.query = embedding(1, width, None, std=1.0, rngs=rngs)
            self.key = linear(width, width, axes, init=init, dtype=dtype, rngs=rngs)
            self.value = linear(width, width, axes, init=init, dtype=dtype, rngs=rngs)
            if output:
                self.out = linear(
                    width, width, ("heads", "embed"), init=init, dtype=dtype, rngs=rngs
                )

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, N, D] states with mask [B, N] -> [B, D]."""
        if self.kind == "first":
            return x[:, 0]
        if self.kind == "first_tanh":
            assert self.out is not None
            return jnp.tanh(self.out(x[:, 0]))
        if self.kind == "mean":
            weight = mask[..., None].astype(jnp.float32)
            total = jnp.sum(x.astype(jnp.float32) * weight, axis=1)
            return (total / jnp.maximum(weight.sum(axis=1), 1.0)).astype(x.dtype)
        batch, _, width = x.shape
        shape = (self.heads, width // self.heads)
        k = self.key(x).reshape(batch, -1, *shape)
        v = self.value(x).reshape(batch, -1, *shape)
        q = jnp.broadcast_to(
            self.query.get_value().astype(x.dtype).reshape(1, 1, *shape), (batch, 1, *shape)
        )
        y = attend(q, k, v, mask[:, None, None, :]).reshape(batch, width)
        return y if self.out is None else self.out(y)
