"""A stack of Swin-v2-like window attention over a grid of patches: AudioMAE's decoder.

Attention is within windows of columns x rows of patches; every other layer moves the windows by
`shift`. Each layer has scaled cosine attention, a position bias that a small network computes from
the distance of two patches, and its norms after attention and MLP, on the branch.

The tokens are kept in window order (groups of rows, within them column by column), so that windows
are neighbours in memory, a shift in time is one roll, and the grid is reordered once, not in every
layer: the stack is bound by memory traffic, not by arithmetic.

Source: facebookresearch/AudioMAE `timm_patch/swin_transformer.py`, `models_mae.py`.
Shapes: B batch, C columns (time), R rows (frequency), G groups of rows, W windows of a group,
K patches of a window, D width, H heads, E head size.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alm_jax.models import fused_attention
from alm_jax.models.layers import Attention, Mlp, dropout, layer_norm, linear
from alm_jax.models.transformer import REMAT_POLICIES

BLOCK = 128  # patches that attend in one step of the kernel: lanes of a TPU's registers
BETWEEN_REGIONS = -100.0  # added to the logits of patches that a shift has made neighbours


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """Size and flavour of a stack; what `TransformerConfig` has too means the same here.

    Attributes:
      width: D.
      depth: number of layers; even if the windows move.
      heads: H.
      mlp_dim: hidden width of the MLP.
      activation: a key of `layers.ACTIVATIONS`.
      eps: LayerNorm epsilon.
      window: columns and rows of patches in a window; a smaller grid is one window.
      shift: columns and rows by which every other layer moves its windows. AudioMAE moves them in
        time only, by (2, 0).
      bias_hidden: hidden width of the network behind the position bias.
      bias_dropout: its dropout, on hidden and output values.
      init: a key of `layers.INITIALIZERS`.
      attention: see `TransformerConfig`.
      remat: what the backward pass recomputes, see `TransformerConfig`.
      unroll: turns of the scan put in line; a turn is two layers if the windows move.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    activation: str = "gelu"
    eps: float = 1e-6
    window: tuple[int, int] = (4, 4)
    shift: tuple[int, int] = (2, 0)
    bias_hidden: int = 384
    bias_dropout: float = 0.1
    init: str = "lecun"
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        if any(self.shift) and self.depth % 2:
            raise ValueError(f"depth is {self.depth}; windows that move need an even one")
        if any(not 0 <= s < w for s, w in zip(self.shift, self.window, strict=True)):
            raise ValueError(f"shift is {self.shift}; it must be in 0 .. window={self.window}")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat is {self.remat!r}; it must be one of {list(REMAT_POLICIES)}")


@dataclasses.dataclass(frozen=True)
class WindowGrid:
    """A grid of patches in window order.

    Attributes:
      columns: C, a multiple of the window's columns.
      rows: R, a multiple of the window's rows.
      window: columns and rows of a window.
      shift: see `WindowConfig`; 0 on an axis that one window spans.
    """

    columns: int
    rows: int
    window: tuple[int, int]
    shift: tuple[int, int]

    @classmethod
    def of(cls, columns: int, rows: int, config: WindowConfig) -> WindowGrid:
        """The grid that holds columns x rows patches, completed to whole windows."""
        window = min(columns, config.window[0]), min(rows, config.window[1])
        grid = -(-columns // window[0]) * window[0], -(-rows // window[1]) * window[1]
        shift = [s if g > w else 0 for s, g, w in zip(config.shift, grid, window, strict=True)]
        return cls(*grid, window, (shift[0], shift[1]))

    @property
    def groups(self) -> int:
        """G."""
        return self.rows // self.window[1]

    def to_windows(self, x: jax.Array) -> jax.Array:
        """[B, C', R', D] -> [B, G, W * K, D]; a smaller grid repeats its last column and row."""
        batch, columns, rows, width = x.shape
        missing = ((0, 0), (0, self.columns - columns), (0, self.rows - rows), (0, 0))
        x = jnp.pad(x, missing, mode="edge")
        x = x.reshape(batch, self.columns, self.groups, self.window[1], width)
        return x.transpose(0, 2, 1, 3, 4).reshape(batch, self.groups, -1, width)

    def from_windows(self, x: jax.Array) -> jax.Array:
        """[B, G, W * K, D] -> [B, C, R, D]."""
        batch, _, _, width = x.shape
        x = x.reshape(batch, self.groups, self.columns, self.window[1], width)
        return x.transpose(0, 2, 1, 3, 4).reshape(batch, self.columns, self.rows, width)

    def roll(self, x: jax.Array, sign: int) -> jax.Array:
        """Moves [B, G, W * K, D] by the shift, towards the start with sign -1."""
        in_time, in_freq = self.shift
        x = jnp.roll(x, sign * in_time * self.window[1], axis=2)
        if in_freq:
            x = self.to_windows(jnp.roll(self.from_windows(x), sign * in_freq, axis=2))
        return x

    @functools.cached_property
    def moved_bias(self) -> np.ndarray:
        """[G, W, K, K] float32: what is added to the logits where the windows have moved."""
        region = np.zeros((self.columns, self.rows), np.int32)
        for axis, (size, window, shift) in enumerate(
            zip(region.shape, self.window, self.shift, strict=True)
        ):
            place = np.arange(size)
            part = (place >= size - window).astype(np.int32) + (place >= size - shift)
            region += 3**axis * (part * bool(shift)).reshape((-1, 1) if axis == 0 else (1, -1))
        grouped = region.reshape(self.columns, self.groups, self.window[1]).transpose(1, 0, 2)
        windows = grouped.reshape(self.groups, -1, self.window[0] * self.window[1])
        differ = windows[..., :, None] != windows[..., None, :]
        return np.where(differ, np.float32(BETWEEN_REGIONS), np.float32(0.0))

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """[K * K, 2] float32: sign(d) ln(1 + |d|) of the distance d in columns and rows."""
        places = np.stack(np.meshgrid(*map(np.arange, self.window), indexing="ij"), -1)
        places = places.reshape(-1, 2)
        d = (places[:, None] - places[None]).reshape(-1, 2).astype(np.float32)
        return np.sign(d) * np.log1p(np.abs(d))


def fused_windows(
    grid: WindowGrid,
    moved: bool,
    heads: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    temperature: jax.Array | None = None,
) -> jax.Array:
    """Attention within windows by the kernel, several neighbouring windows at a time.

    A window of 16 patches would leave most of a TPU's registers empty. So as many windows as make
    `BLOCK` patches attend to each other, with a bias that lets none see another window.

    Args:
      grid: the windows.
      moved: whether they have moved, so that some hold patches that are no neighbours.
      heads: H.
      q: [B, G, W * K, D].
      k: as q.
      v: as q.
      bias: [H, K, K] float32, of the places within a window.
      temperature: [H] float32, by which the cosine is divided; None attends by the product.

    Returns:
      [B, G, W * K, D].
    """
    patches = bias.shape[-1]
    windows = grid.columns // grid.window[0]
    fitting = range(1, max(1, BLOCK // patches) + 1)
    together = max(n for n in fitting if windows % n == 0)
    size = together * patches
    between = np.kron(1.0 - np.eye(together), np.ones((patches, patches)))
    tiled = jnp.tile(bias, (1, together, together)) + np.float32(
        fused_attention.FORBIDDEN * between
    )
    if moved:
        regions = grid.moved_bias.reshape(-1, together, patches, patches)
        of_block = np.zeros((len(regions), size, size), np.float32)
        for n in range(together):
            place = slice(n * patches, (n + 1) * patches)
            of_block[:, place, place] = regions[:, n]
        patterns = tiled + of_block[:, None]
    else:
        patterns = tiled[None]
    whole = q.shape
    q, k, v = (x.reshape(-1, len(patterns), size, x.shape[-1]) for x in (q, k, v))
    scale = None
    if temperature is not None:
        scale = jnp.broadcast_to(1.0 / temperature[:, None], (heads, size))
    extras = fused_attention.Extras(None, patterns, scale)
    return fused_attention.fused(q, k, v, heads, extras).reshape(whole)


class WindowAttention(Attention):
    """Scaled cosine attention within windows, with a position bias."""

    def __init__(self, config: WindowConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config
        super().__init__(
            c.width, c.heads, init=c.init, dtype=dtype, rngs=rngs, attention=c.attention
        )
        self.bias_dropout = c.bias_dropout
        self.tau = nnx.Param(jnp.ones((c.heads,), jnp.float32), axes=(None,))
        plain = (None, None)
        self.bias_up = linear(2, c.bias_hidden, plain, init=c.init, dtype=jnp.float32, rngs=rngs)
        self.bias_down = linear(
            c.bias_hidden, c.heads, plain, init=c.init, dtype=jnp.float32, rngs=rngs
        )

    def position_bias(self, distances: np.ndarray, key: jax.Array | None) -> jax.Array:
        """[H, K, K] float32 bias of a pair of patches from their distances [K * K, 2]."""
        first, second = (None, None) if key is None else jax.random.split(key)
        hidden = dropout(
            jax.nn.relu(self.bias_up(jnp.asarray(distances))), self.bias_dropout, first
        )
        bias = dropout(self.bias_down(hidden), self.bias_dropout, second)
        patches = int(len(distances) ** 0.5)
        return bias.T.reshape(self.heads, patches, patches)

    def windows(
        self, x: jax.Array, grid: WindowGrid, moved: bool, key: jax.Array | None
    ) -> jax.Array:
        """Attention [B, G, W * K, D] -> the same shape; logits and softmax in float32."""
        q, k, v = (part(x) for part in (self.query, self.key, self.value))
        bias = self.position_bias(grid.distances, key)
        temperature = jnp.maximum(self.tau.get_value(), 0.01)
        plain = functools.partial(self._attend, grid, moved)
        if not self.fused:
            return self.out(plain(q, k, v, bias, temperature))
        on_tpu = functools.partial(fused_windows, grid, moved, self.heads)
        return self.out(fused_attention.by_platform(on_tpu, plain, q, k, v, bias, temperature))

    def _attend(
        self,
        grid: WindowGrid,
        moved: bool,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        bias: jax.Array,
        temperature: jax.Array,
    ) -> jax.Array:
        """Attention of q, k, v [B, G, W * K, D] with a bias [H, K, K] and a temperature [H]."""
        columns, rows = grid.window
        split = (*q.shape[:2], -1, columns * rows, self.heads, q.shape[-1] // self.heads)
        whole = q.shape
        q, k, v = (part.reshape(split) for part in (q, k, v))
        logits = jnp.einsum("bgwihe,bgwjhe->bgwhij", q, k, preferred_element_type=jnp.float32)
        q2, k2 = (jnp.sum(jnp.square(part.astype(jnp.float32)), axis=-1) for part in (q, k))
        # The official floor of 1e-6 is on the product of the norms. Squared, it has a gradient at
        # zero too.
        product = jnp.einsum("bgwih,bgwjh->bgwhij", q2, k2)
        logits *= jax.lax.rsqrt(jnp.maximum(product, 1e-12))
        logits /= temperature[:, None, None]
        logits += bias
        if moved:
            logits += grid.moved_bias[:, :, None]
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return jnp.einsum("bgwhij,bgwjhe->bgwihe", weights, v).reshape(whole)


class WindowBlock(nnx.Module):
    """x + norm(attention(x)), then x + norm(MLP(x))."""

    def __init__(self, config: WindowConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config
        self.attention = WindowAttention(c, dtype=dtype, rngs=rngs)
        self.attention_norm = layer_norm(c.width, eps=c.eps, rngs=rngs)
        self.mlp = Mlp(c.width, c.mlp_dim, c.activation, init=c.init, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(c.width, eps=c.eps, rngs=rngs)

    def __call__(
        self, x: jax.Array, grid: WindowGrid, moved: bool, key: jax.Array | None
    ) -> jax.Array:
        """One layer over [B, G, W * K, D]; `moved` says whether its windows are shifted."""
        y = grid.roll(x, -1) if moved else x
        y = self.attention.windows(y, grid, moved, key)
        y = grid.roll(y, 1) if moved else y
        x = x + self.attention_norm(y).astype(x.dtype)
        return x + self.mlp_norm(self.mlp(x)).astype(x.dtype)


class WindowTransformer(nnx.Module):
    """`depth` layers applied by one scan, two a turn where every other one moves its windows."""

    def __init__(self, config: WindowConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config

        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(key: jax.Array) -> WindowBlock:
            return WindowBlock(config, dtype=dtype, rngs=nnx.Rngs(key))

        self.blocks = stacked(jax.random.split(rngs.params(), config.depth))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Runs the stack.

        Args:
          x: [B, C, R, D], a grid of patches.
          key: PRNG key for dropout; None in evaluation.

        Returns:
          [B, C, R, D] in x's dtype.
        """
        c = self.config
        columns, rows = x.shape[1:3]
        grid = WindowGrid.of(columns, rows, c)
        turn = 2 if any(c.shift) else 1
        graph, stack = nnx.split(self.blocks)
        keys = None if key is None else jax.random.split(key, c.depth)
        by_turn = jax.tree.map(lambda p: p.reshape(-1, turn, *p.shape[1:]), (stack, keys))

        def layers(h, inputs):
            for layer in range(turn):
                state, layer_key = jax.tree.map(lambda p, i=layer: p[i], inputs)
                moved = layer == 1 and any(grid.shift)
                h = nnx.merge(graph, state)(h, grid, moved, layer_key)
            return h, None

        if c.remat != "none":
            layers = jax.checkpoint(layers, policy=REMAT_POLICIES[c.remat])
        y, _ = jax.lax.scan(layers, grid.to_windows(x), by_turn, unroll=c.unroll)
        return grid.from_windows(y)[:, :columns, :rows]
