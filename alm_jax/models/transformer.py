"""One transformer stack for every tower and decoder: pre- or post-LN, causal, cross-attending.

The layers' parameters are stacked on a leading axis and the stack is one `jax.lax.scan`, so the
program is as small for 24 layers as for one. `Cache` carries the keys and values of decoded tokens.
Shapes: B batch, L length, K context length, D width, H heads, E head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.models import linear
from alm_jax.models.layers import Attention, Mlp, drop_path, dropout, layer_norm

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(linear.PRODUCT),
    ),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Size and flavour of a stack.

    Attributes:
      width: D.
      depth: number of layers.
      heads: H; must divide the width.
      mlp_dim: hidden width of the MLP.
      activation: a key of `layers.ACTIVATIONS`.
      norm: "pre" (ViT, Cacophony audio) or "post" (RoBERTa) LayerNorm.
      eps: LayerNorm epsilon.
      causal: whether a token sees only itself and earlier ones.
      cross: whether each layer also attends to a context.
      dropout: rate on the output of attention and MLP.
      attention_dropout: rate on the attention weights (BERT's attention_probs_dropout_prob).
      drop_path: stochastic depth of the last layer, growing linearly from 0 at the first.
      init: a key of `layers.INITIALIZERS`.
      attention: "xla", or "fused": by a kernel where the program is compiled for a TPU.
      remat: what the backward pass recomputes: "none", "dots" (all but matmul outputs), "full".
      unroll: layers a turn of the scan; `depth` gives a program without a loop.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    activation: str = "gelu"
    norm: str = "pre"
    eps: float = 1e-6
    causal: bool = False
    cross: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    init: str = "lecun"
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        if self.norm not in ("pre", "post"):
            raise ValueError(f"norm is {self.norm!r}; it must be 'pre' or 'post'")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat is {self.remat!r}; it must be one of {list(REMAT_POLICIES)}")


class Cache(NamedTuple):
    """Keys and values of a stack while it decodes; the leading axis is the layer.

    Attributes:
      keys: [layers, B, L, H, E] of the tokens so far, zeros beyond.
      values: as keys.
      context_keys: [layers, B, K, H, E] of the cross-attended context, or None.
      context_values: as context_keys.
    """

    keys: jax.Array
    values: jax.Array
    context_keys: jax.Array | None
    context_values: jax.Array | None

    def rows(self, index: jax.Array) -> Cache:
        """The cache with the tokens of the rows `index` [B]; the context stays where it is."""
        keys, values = (jnp.take(x, index, axis=1) for x in (self.keys, self.values))
        return self._replace(keys=keys, values=values)


class Block(nnx.Module):
    """Self-attention, optional cross-attention and MLP with residuals."""

    def __init__(self, config: TransformerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config
        self.config = c
        few: dict[str, Any] = dict(init=c.init, dtype=dtype, rngs=rngs)
        self.attention = Attention(c.width, c.heads, attention=c.attention, **few)
        self.attention_norm = layer_norm(c.width, eps=c.eps, rngs=rngs)
        if c.cross:
            self.cross = Attention(c.width, c.heads, attention=c.attention, **few)
            self.cross_norm = layer_norm(c.width, eps=c.eps, rngs=rngs)
        self.mlp = Mlp(c.width, c.mlp_dim, c.activation, **few)
        self.mlp_norm = layer_norm(c.width, eps=c.eps, rngs=rngs)

    def residual(
        self,
        x: jax.Array,
        norm: nnx.LayerNorm,
        branch: Callable[[jax.Array], jax.Array],
        key: jax.Array | None,
        rate: jax.Array | float,
    ) -> jax.Array:
        """Adds branch(x) to x in the configured LayerNorm order."""
        drop_key = path_key = None
        if key is not None:
            drop_key, path_key = jax.random.split(key)
        pre = self.config.norm == "pre"
        y = dropout(branch(norm(x).astype(x.dtype) if pre else x), self.config.dropout, drop_key)
        if self.config.drop_path:
            y = drop_path(y, rate, path_key)
        return x + y if pre else norm(x + y).astype(x.dtype)

    def attention_drop(self, key: jax.Array | None) -> tuple[float, jax.Array | None]:
        """Rate and key of the dropout of attention weights, of the key of a residual branch."""
        rate = self.config.attention_dropout
        # 0 and 1 are the keys that `residual` splits off.
        return rate, None if key is None or rate == 0.0 else jax.random.fold_in(key, 2)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        context: jax.Array | None,
        context_mask: jax.Array | None,
        key: jax.Array | None,
        rate: jax.Array,
    ) -> jax.Array:
        """One layer over whole sequences; see `Transformer.__call__`."""
        keys: Any = [None] * 3 if key is None else jax.random.split(key, 3)
        x = self.residual(
            x,
            self.attention_norm,
            lambda h: self.attention(h, None, mask, *self.attention_drop(keys[0])),
            keys[0],
            rate,
        )
        if self.config.cross:
            x = self.residual(
                x,
                self.cross_norm,
                lambda h: self.cross(h, context, context_mask, *self.attention_drop(keys[1])),
                keys[1],
                rate,
            )
        return self.residual(x, self.mlp_norm, self.mlp, keys[2], rate)

    def decode(
        self,
        x: jax.Array,
        cache: Cache,
        position: jax.Array,
        mask: jax.Array,
        context_mask: jax.Array | None,
    ) -> tuple[jax.Array, Cache]:
        """One layer over one new token [B, 1, D] at `position`; returns it and its new cache."""
        new: dict[str, jax.Array] = {}

        def self_attention(h: jax.Array) -> jax.Array:
            k, v = self.attention.keys_values(h)
            new["keys"] = jax.lax.dynamic_update_slice_in_dim(cache.keys, k, position, axis=1)
            new["values"] = jax.lax.dynamic_update_slice_in_dim(cache.values, v, position, axis=1)
            return self.attention.from_keys_values(h, new["keys"], new["values"], mask)

        def cross_attention(h: jax.Array) -> jax.Array:
            assert cache.context_keys is not None and cache.context_values is not None
            return self.cross.from_keys_values(
                h, cache.context_keys, cache.context_values, context_mask
            )

        x = self.residual(x, self.attention_norm, self_attention, None, 0.0)
        if self.config.cross:
            x = self.residual(x, self.cross_norm, cross_attention, None, 0.0)
        x = self.residual(x, self.mlp_norm, self.mlp, None, 0.0)
        return x, cache._replace(**new)


class Transformer(nnx.Module):
    """`depth` blocks applied by one scan over their stacked parameters."""

    def __init__(self, config: TransformerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype

        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(key: jax.Array) -> Block:
            return Block(config, dtype=dtype, rngs=nnx.Rngs(key))

        self.blocks = stacked(jax.random.split(rngs.params(), config.depth))

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the stack.

        Args:
          x: [B, L, D].
          mask: bool, True for tokens that may be attended to: [B, L] by all, or [B, L, L], where
            the second axis is of those that attend.
          context: [B, K, D] for cross-attention.
          context_mask: [B, K] bool.
          key: PRNG key for dropout and stochastic depth; None in evaluation.

        Returns:
          [B, L, D] in x's dtype.
        """
        c = self.config
        graph, stack = nnx.split(self.blocks)
        attention_mask = mask
        if mask is not None:
            attention_mask = mask[:, None] if mask.ndim == 3 else mask[:, None, None, :]
        if c.causal:
            causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
            attention_mask = causal if attention_mask is None else attention_mask & causal
        cross_mask = None if context_mask is None else context_mask[:, None, None, :]
        rates = jnp.linspace(0.0, c.drop_path, c.depth)
        keys = None if key is None else jax.random.split(key, c.depth)

        def layer(h, inputs):
            state, layer_key, rate = inputs
            block = nnx.merge(graph, state)
            return block(h, attention_mask, context, cross_mask, layer_key, rate), None

        if c.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[c.remat])
        x, _ = jax.lax.scan(layer, x, (stack, keys, rates), unroll=c.unroll)
        return x

    def init_cache(self, batch: int, length: int, context: jax.Array | None = None) -> Cache:
        """An empty cache for `length` tokens; the context's keys and values are computed once."""
        c = self.config
        shape = (c.depth, batch, length, c.heads, c.width // c.heads)
        zeros = jnp.zeros(shape, self.dtype)
        if not c.cross:
            return Cache(zeros, zeros, None, None)
        graph, stack = nnx.split(self.blocks)
        if context is None:
            raise ValueError("a cross-attending stack needs its context to fill the cache")
        keys, values = jax.lax.map(
            lambda state: nnx.merge(graph, state).cross.keys_values(context), stack
        )
        return Cache(zeros, zeros, keys, values)

    def decode(
        self, x: jax.Array, cache: Cache, position: jax.Array, context_mask: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Runs the stack on the one token x [B, 1, D] at `position`; equal to teacher forcing."""
        graph, stack = nnx.split(self.blocks)
        mask = (jnp.arange(cache.keys.shape[2]) <= position)[None, None, None, :]
        cross_mask = None if context_mask is None else context_mask[:, None, None, :]

        def layer(h, inputs):
            state, layer_cache = inputs
            block = nnx.merge(graph, state)
            return block.decode(h, layer_cache, position, mask, cross_mask)

        return jax.lax.scan(layer, x, (stack, cache))
