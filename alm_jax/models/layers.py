"""Linear, norm, attention and MLP layers whose parameters name their logical axes.

Each parameter carries `axes`, a tuple of logical axis names that `alm_jax.parallel.sharding` maps
to the device mesh: "embed" (width), "heads" (heads * head size), "mlp", "vocab", "patch".
Shapes: B batch, L query length, K key length, D width, H heads, E head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from alm_jax.models import fused_attention
from alm_jax.models.linear import Linear

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}

INITIALIZERS: dict[str, Callable[[], nnx.Initializer]] = {
    "lecun": lambda: nnx.initializers.lecun_normal(),
    "xavier": lambda: nnx.initializers.xavier_uniform(),
    "bert": lambda: nnx.initializers.normal(0.02),
}


def linear(
    inputs: int,
    outputs: int,
    axes: tuple[str | None, str | None],
    *,
    init: str,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    use_bias: bool = True,
) -> nnx.Linear:
    """A Dense layer; `axes` name its kernel's [inputs, outputs] dimensions."""
    return Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=INITIALIZERS[init](),
        dtype=dtype,
        rngs=rngs,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
    )


def layer_norm(width: int, *, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, computed in float32 whatever the model's dtype."""
    return nnx.LayerNorm(
        width,
        epsilon=eps,
        dtype=jnp.float32,
        use_fast_variance=False,
        rngs=rngs,
        bias_metadata={"axes": ("embed",)},
        scale_metadata={"axes": ("embed",)},
    )


def embedding(
    rows: int, width: int, row_axis: str | None, *, std: float, rngs: nnx.Rngs
) -> nnx.Param:
    """A [rows, width] table drawn from a normal distribution of the given standard deviation."""
    value = nnx.initializers.normal(std)(rngs.params(), (rows, width), jnp.float32)
    return nnx.Param(value, axes=(row_axis, "embed"))


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention, logits and softmax in float32.

    Args:
      q: [B, L, H, E].
      k: [B, K, H, E].
      v: [B, K, H, E].
      mask: bool, broadcastable to [B, H, L, K]; False keys get no weight.
      rate: of dropout on the softmax, each weight by itself; those that stay grow by 1 / (1 - rate)
        and need not sum to 1, as in BERT.
      key: PRNG key of that dropout; None in evaluation.

    Returns:
      [B, L, H, E] in q's dtype.
    """
    if key is None or rate == 0.0:
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    scale = 1.0 / math.sqrt(q.shape[-1])
    logits = scale * jnp.einsum("blhe,bkhe->bhlk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -0.7 * jnp.finfo(jnp.float32).max)
    weights = dropout(jax.nn.softmax(logits, axis=-1), rate, key)
    return jnp.einsum("bhlk,bkhe->blhe", weights.astype(v.dtype), v).astype(q.dtype)


ATTENTIONS = ("xla", "fused")  # how attention is computed, see `fused_attention`


class Attention(nnx.Module):
    """Multi-head attention with biases; the context defaults to the input itself."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        init: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        attention: str = "xla",
    ):
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        if attention not in ATTENTIONS:
            raise ValueError(f"attention is {attention!r}; it must be one of {ATTENTIONS}")
        self.heads = heads
        self.fused = attention == "fused"
        inward, outward = ("embed", "heads"), ("heads", "embed")
        self.query = linear(width, width, inward, init=init, dtype=dtype, rngs=rngs)
        self.key = linear(width, width, inward, init=init, dtype=dtype, rngs=rngs)
        self.value = linear(width, width, inward, init=init, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, outward, init=init, dtype=dtype, rngs=rngs)

    def split(self, x: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, H, E]."""
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def keys_values(self, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, K, H, E] of a context [B, K, D]."""
        return self.split(self.key(context)), self.split(self.value(context))

    def from_keys_values(
        self, x: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
    ) -> jax.Array:
        """Attends from x [B, L, D] to given keys and values; returns [B, L, D]."""
        q = self.split(self.query(x))
        # Of one query there is nothing to fuse; a mask of each head has no kernel.
        if self.fused and q.shape[1] > 1 and (mask is None or mask.shape[1] == 1):
            y = self._fused(q, k, v, mask)
        else:
            y = attend(q, k, v, mask)
        return self.out(y.reshape(*x.shape[:-1], -1))

    def _fused(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
        """`attend`, by the kernel on a TPU."""

        def on_tpu(q: jax.Array, k: jax.Array, v: jax.Array, *mask: jax.Array) -> jax.Array:
            whole, extras = q.shape, fused_attention.Extras(*mask)
            q, k, v = (x.reshape(len(x), 1, x.shape[1], -1) for x in (q, k, v))
            return fused_attention.fused(q, k, v, self.heads, extras).reshape(whole)

        def elsewhere(q: jax.Array, k: jax.Array, v: jax.Array, *mask: jax.Array) -> jax.Array:
            return attend(q, k, v, mask[0] == 0.0 if mask else None)

        masks = () if mask is None else (fused_attention.additive(mask),)
        return fused_attention.by_platform(on_tpu, elsewhere, q, k, v, *masks)

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        mask: jax.Array | None = None,
        rate: float = 0.0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """[B, L, D] from x [B, L, D] attending to the context [B, K, D].

        Mask, and dropout of attention weights at `rate` with a key, are those of `attend`.
        """
        k, v = self.keys_values(x if context is None else context)
        if key is None or rate == 0.0:
            return self.from_keys_values(x, k, v, mask)
        y = attend(self.split(self.query(x)), k, v, mask, rate, key)
        return self.out(y.reshape(*x.shape[:-1], -1))


class Mlp(nnx.Module):
    """Dense, activation, Dense."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        *,
        init: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it must be one of {list(ACTIVATIONS)}")
        self.activation = activation
        self.up = linear(width, hidden, ("embed", "mlp"), init=init, dtype=dtype, rngs=rngs)
        self.down = linear(hidden, width, ("mlp", "embed"), init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        # Left alone, the backward pass of a GELU reads three arrays as large as its input. With a
        # barrier against common subexpressions, a TPU's layer would move a twelfth more bytes.
        activation = jax.checkpoint(ACTIVATIONS[self.activation], prevent_cse=False)
        return self.down(activation(self.up(x)))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries of x with probability `rate`; no key means evaluation, x is returned."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def drop_path(x: jax.Array, rate: jax.Array | float, key: jax.Array | None) -> jax.Array:
    """Stochastic depth: zeroes whole examples of a residual branch x [B, ...]."""
    if key is None:
        return x
    keep = jax.random.uniform(key, (x.shape[0],) + (1,) * (x.ndim - 1)) >= rate
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def sincos_positions(index: jax.Array, width: int) -> jax.Array:
    """Fixed positions [..., width] = [sin | cos] of an integer index, base 10000, in float32.

    Source: Cacophony `src/caco/audio_models`; the exponent is 2 i / width for i < width / 2.
    """
    rate = jnp.exp(jnp.arange(width // 2, dtype=jnp.float32) * (-2.0 * math.log(10000.0) / width))
    angle = index[..., None].astype(jnp.float32) * rate
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
