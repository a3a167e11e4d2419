"""Swin v1: pre-LN window attention with tables of relative position bias, and patch merging.

A stage is a stack of blocks over a grid; every other block moves its windows by half a window on
both axes (not where one window spans the grid). Between stages, merging halves both axes and
doubles the width.

Source: HTS-AT `model/htsat.py`, LAION-CLAP `clap_module/htsat.py`, Hugging Face `modeling_clap.py`.
Shapes: B batch, H x W grid (C, R in `windows.WindowGrid`), G groups of rows, K patches of a window,
D width, E head size.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alm_jax.models import fused_attention
from alm_jax.models.layers import Attention, Mlp, drop_path, layer_norm, linear
from alm_jax.models.transformer import REMAT_POLICIES
from alm_jax.models.windows import WindowGrid, fused_windows


@dataclasses.dataclass(frozen=True)
class SwinStageConfig:
    """Size and flavour of one stage.

    Attributes:
      width: D.
      depth: number of blocks; even, since they alternate.
      heads: number of heads.
      mlp_dim: hidden width of the MLP.
      eps: LayerNorm epsilon.
      window: patches along a side of a window; a smaller grid is one window.
      init: a key of `layers.INITIALIZERS`.
      attention: see `TransformerConfig`.
      remat: what the backward pass recomputes, see `TransformerConfig`.
      unroll: pairs of blocks put in line.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    eps: float = 1e-5
    window: int = 8
    init: str = "bert"
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        if self.depth % 2:
            raise ValueError(f"depth is {self.depth}; blocks with moved windows need an even one")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat is {self.remat!r}; it must be one of {list(REMAT_POLICIES)}")


def relative_index(window: int) -> np.ndarray:
    """[K, K] int32: row of the bias table for a pair of patches of a window."""
    places = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij"), -1).reshape(-1, 2)
    distance = places[:, None] - places[None] + window - 1
    return (distance[..., 0] * (2 * window - 1) + distance[..., 1]).astype(np.int32)


class SwinAttention(Attention):
    """Attention within windows, with a learned bias for each head and relative position."""

    def __init__(self, config: SwinStageConfig, window: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config
        super().__init__(
            c.width, c.heads, init=c.init, dtype=dtype, rngs=rngs, attention=c.attention
        )
        self.window = window
        rows = (2 * window - 1) ** 2
        drawn = nnx.initializers.truncated_normal(0.02)(rngs.params(), (rows, c.heads), jnp.float32)
        self.relative_bias = nnx.Param(drawn, axes=(None, None))

    def windows(self, x: jax.Array, grid: WindowGrid, moved: bool) -> jax.Array:
        """Attention over [B, G, W * K, D] in window order; logits and softmax in float32."""
        q, k, v = (part(x) for part in (self.query, self.key, self.value))
        bias = self.relative_bias.get_value()[relative_index(self.window)].transpose(2, 0, 1)
        plain = functools.partial(self._attend, grid, moved)
        if not self.fused:
            return self.out(plain(q, k, v, bias))
        on_tpu = functools.partial(fused_windows, grid, moved, self.heads)
        return self.out(fused_attention.by_platform(on_tpu, plain, q, k, v, bias))

    def _attend(
        self,
        grid: WindowGrid,
        moved: bool,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        bias: jax.Array,
    ) -> jax.Array:
        """Attention of q, k, v [B, G, W * K, D] with a bias [H, K, K]."""
        whole, size = q.shape, q.shape[-1] // self.heads
        split = (*whole[:2], -1, self.window**2, self.heads, size)
        q, k, v = (part.reshape(split) for part in (q, k, v))
        logits = jnp.einsum(
            "bgwihe,bgwjhe->bgwhij", q * size**-0.5, k, preferred_element_type=jnp.float32
        )
        logits += bias
        if moved:
            logits += grid.moved_bias[:, :, None]
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return jnp.einsum("bgwhij,bgwjhe->bgwihe", weights, v).reshape(whole)


class SwinBlock(nnx.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: SwinStageConfig, window: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config
        self.attention = SwinAttention(c, window, dtype=dtype, rngs=rngs)
        self.attention_norm = layer_norm(c.width, eps=c.eps, rngs=rngs)
        self.mlp = Mlp(c.width, c.mlp_dim, "gelu", init=c.init, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(c.width, eps=c.eps, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        grid: WindowGrid,
        moved: bool,
        key: jax.Array | None,
        rate: jax.Array,
    ) -> jax.Array:
        """One block over [B, G, W * K, D]; `rate` is its stochastic depth."""
        first, second = (None, None) if key is None else jax.random.split(key)
        y = self.attention_norm(x).astype(x.dtype)
        y = grid.roll(y, -1) if moved else y
        y = self.attention.windows(y, grid, moved)
        y = grid.roll(y, 1) if moved else y
        x = x + drop_path(y, rate, first)
        y = self.mlp(self.mlp_norm(x).astype(x.dtype))
        return x + drop_path(y, rate, second)


class SwinStage(nnx.Module):
    """The blocks of one stage by one scan, two a turn, over a grid of fixed size."""

    def __init__(
        self,
        config: SwinStageConfig,
        side: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """`side` is the number of patches along a side of the square grid."""
        self.config = config
        window = min(config.window, side)
        # One window that spans the grid does not move: WindowGrid sees to it.
        self.grid = WindowGrid(side, side, (window, window), (0, 0))
        if side > window:
            self.grid = dataclasses.replace(self.grid, shift=(window // 2, window // 2))

        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(key: jax.Array) -> SwinBlock:
            return SwinBlock(config, window, dtype=dtype, rngs=nnx.Rngs(key))

        self.blocks = stacked(jax.random.split(rngs.params(), config.depth))

    def __call__(self, x: jax.Array, key: jax.Array | None, rates: jax.Array) -> jax.Array:
        """Runs the stage over x [B, H, W, D]; rates [depth] of stochastic depth."""
        c, grid = self.config, self.grid
        graph, stack = nnx.split(self.blocks)
        keys = None if key is None else jax.random.split(key, c.depth)
        pairs = jax.tree.map(lambda p: p.reshape(-1, 2, *p.shape[1:]), (stack, keys, rates))

        def pair(h, inputs):
            for layer in range(2):
                state, layer_key, rate = jax.tree.map(lambda p, i=layer: p[i], inputs)
                moved = layer == 1 and any(grid.shift)
                h = nnx.merge(graph, state)(h, grid, moved, layer_key, rate)
            return h, None

        if c.remat != "none":
            pair = jax.checkpoint(pair, policy=REMAT_POLICIES[c.remat])
        y, _ = jax.lax.scan(pair, grid.to_windows(x), pairs, unroll=c.unroll)
        return grid.from_windows(y)


class PatchMerging(nnx.Module):
    """[B, H, W, D] -> [B, H / 2, W / 2, 2 D]: LayerNorm of four neighbours, Dense without bias."""

    def __init__(self, width: int, *, eps: float, init: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = layer_norm(4 * width, eps=eps, rngs=rngs)
        self.reduce = linear(
            4 * width, 2 * width, ("embed", None), init=init, dtype=dtype, rngs=rngs, use_bias=False
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Neighbours in the official order: (0, 0), (1, 0), (0, 1), (1, 1) of (row, column)."""
        four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(jnp.concatenate(four, axis=-1)).astype(x.dtype))
