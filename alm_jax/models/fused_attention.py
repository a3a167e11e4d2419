"""Attention whose logits never leave the chip: a Pallas kernel for TPUs and short sequences.

XLA writes the logits of attention to main memory several times in each layer, and pads heads of 32
or 64 and windows of 16 patches to the 128 lanes of a register, so that a stack of narrow windows
spends most of its time on padding. Here one step of a grid holds the whole sequence of one row, or
128 patches of neighbouring windows, in on-chip memory: sequences are short enough for that, so
nothing is tiled over keys as in FlashAttention (arXiv 2205.14135). Heads are columns of the
unsplit [L, D] arrays. The backward pass differentiates the same function of one head inside a
second kernel, so that only queries, keys and values are kept.

`fused` is the function. `by_platform` takes it on a TPU, and elsewhere what XLA does well there.
Shapes: R rows, P patterns of bias, L queries, K keys, D width, H heads, E head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from alm_jax.parallel.mesh import BATCH_AXES, row_devices

FORBIDDEN = -1e30  # added to the logit of a key that may not be seen
_SMALLEST_PRODUCT = 1e-12  # of squared norms, in cosine attention
_VMEM_BYTES = 64 * 2**20

Function = Callable[..., jax.Array]


def additive(mask: jax.Array) -> jax.Array:
    """Float32 0 where a boolean mask is True, else `FORBIDDEN`."""
    return jnp.where(mask, jnp.float32(0.0), jnp.float32(FORBIDDEN))


class Extras(NamedTuple):
    """What changes the logits, each None or float32.

    Attributes:
      mask: added, [R or 1, 1, L or 1, K]: 0 or `FORBIDDEN`; not differentiated.
      bias: added, [P, H, L, K].
      scale: times the cosine of query and key instead of their product / sqrt(E), [H, K].
    """

    mask: jax.Array | None = None
    bias: jax.Array | None = None
    scale: jax.Array | None = None


def one_head(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    scale: jax.Array | None,
) -> jax.Array:
    """Attention of one head; logits, softmax and sums in float32.

    Args:
      q: [L, E].
      k: [K, E].
      v: [K, E].
      mask: [L or 1, K].
      bias: [L, K].
      scale: [1, K].

    Returns:
      [L, E] float32.
    """
    logits = _product(q, k, ((1,), (1,)))
    if scale is None:
        logits *= q.shape[-1] ** -0.5
    else:
        q2 = jnp.sum(jnp.square(q.astype(jnp.float32)), axis=-1, keepdims=True)
        k2 = jnp.square(k.astype(jnp.float32))
        ones = jnp.ones((8, k.shape[-1]), jnp.float32)  # a row of sums, where a sum is a column
        k2 = _product(ones, k2, ((1,), (1,)), jax.lax.Precision.HIGHEST)[:1]
        logits *= jax.lax.rsqrt(jnp.maximum(q2 * k2, _SMALLEST_PRODUCT)) * scale
    if bias is not None:
        logits += bias
    if mask is not None:
        logits += mask
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    weights /= jnp.sum(weights, axis=-1, keepdims=True)
    return _product(weights.astype(v.dtype), v, ((1,), (0,)))


def _product(a: jax.Array, b: jax.Array, contract: Any, precision: Any = None) -> jax.Array:
    if precision is None and a.dtype == jnp.float32:
        precision = jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(
        a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def by_platform(on_tpu: Function, elsewhere: Function, *operands: jax.Array) -> jax.Array:
    """One of two functions that compute the same of float arrays, as the program's platform says.

    Its gradient is that function's own, computed from the operands again: differentiating the
    choice itself would keep what either of the two needs.
    """
    return jax.lax.platform_dependent(*operands, tpu=on_tpu, default=elsewhere)


def _by_platform_forward(on_tpu, elsewhere, *operands):
    return by_platform(on_tpu, elsewhere, *operands), operands


def _by_platform_backward(on_tpu, elsewhere, operands, gradient):
    def pull(function: Function) -> Callable[..., Any]:
        return lambda gradient, *operands: jax.vjp(function, *operands)[1](gradient)

    return jax.lax.platform_dependent(
        gradient, *operands, tpu=pull(on_tpu), default=pull(elsewhere)
    )


by_platform.defvjp(_by_platform_forward, _by_platform_backward)


def fused(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    heads: int,
    extras: Extras,
) -> jax.Array:
    """Softmax attention of unsplit heads by the kernel.

    Args:
      q: [R, P, L, D]; every [L, D] attends by itself, and takes the bias of its place in P.
      k: [R, P, K, D].
      v: [R, P, K, D].
      heads: H.
      extras: masks and biases.

    Returns:
      [R, P, L, D] in q's dtype.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or len(q) % row_devices(mesh):
        # Rows that the devices cannot share lie on all of them.
        return _fused(heads, q, k, v, extras)
    # The compiler cannot divide a kernel among devices: each runs it on its own rows and heads.
    tensor = mesh.shape["tensor"] if heads % mesh.shape["tensor"] == 0 else 1
    columns = "tensor" if tensor > 1 else None
    rows = PartitionSpec(BATCH_AXES, None, None, columns)
    specs: Any = Extras(*(x if x is None else PartitionSpec() for x in extras))  # type: ignore[arg-type]
    if extras.mask is not None and len(extras.mask) > 1:
        specs = specs._replace(mask=PartitionSpec(BATCH_AXES))
    if extras.bias is not None:
        specs = specs._replace(bias=PartitionSpec(None, columns))
    if extras.scale is not None:
        specs = specs._replace(scale=PartitionSpec(columns))
    return jax.shard_map(
        functools.partial(_fused, heads // tensor),
        in_specs=(rows, rows, rows, specs),
        out_specs=rows,
        check_vma=False,
    )(q, k, v, extras)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(heads: int, q: jax.Array, k: jax.Array, v: jax.Array, extras: Extras) -> jax.Array:
    return _call(_forward, heads, (q, k, v), extras, [(q.shape, q.dtype, "rows")])[0]


def _fused_forward(heads, q, k, v, extras):
    return _fused(heads, q, k, v, extras), (q, k, v, extras)


def _fused_backward(heads, kept, gradient):
    q, k, v, extras = kept
    outputs = [(x.shape, x.dtype, "rows") for x in (q, k, v)]
    if extras.bias is not None:
        outputs.append((extras.bias.shape, jnp.float32, "bias"))
    if extras.scale is not None:
        patterns = (q.shape[1], *extras.scale.shape)
        outputs.append((patterns, jnp.float32, "scale"))
    found = _call(_backward, heads, (q, k, v, gradient), extras, outputs)
    dq, dk, dv, *rest = found
    mask = None if extras.mask is None else jnp.zeros_like(extras.mask)
    bias = None if extras.bias is None else rest.pop(0)
    scale = None if extras.scale is None else rest.pop(0).sum(axis=0)
    return dq, dk, dv, Extras(mask, bias, scale)


_fused.defvjp(_fused_forward, _fused_backward)


def _call(
    kernel: Any,
    heads: int,
    rows: tuple[jax.Array, ...],
    extras: Extras,
    outputs: list[tuple[Any, Any, str]],
) -> list[jax.Array]:
    """Runs a kernel over the grid (P, R): the bias of a pattern is fetched once for all rows."""
    count, patterns = rows[0].shape[:2]

    def spec(shape: tuple[int, ...], kind: str) -> pl.BlockSpec:
        if kind == "rows":
            return pl.BlockSpec((1, 1, *shape[2:]), lambda p, r: (r, p, 0, 0))
        if kind == "mask":
            each = shape[0] > 1
            return pl.BlockSpec((1, 1, *shape[2:]), lambda p, r: (r if each else 0, 0, 0, 0))
        if kind == "bias":
            return pl.BlockSpec((1, *shape[1:]), lambda p, r: (p, 0, 0, 0))
        if len(shape) == 2:  # the scale, the same everywhere
            return pl.BlockSpec(shape, lambda p, r: (0, 0))
        return pl.BlockSpec((1, *shape[1:]), lambda p, r: (p, 0, 0))

    named = zip(("mask", "bias", "scale"), extras, strict=True)
    present = [(x, kind) for kind, x in named if x is not None]
    return pl.pallas_call(
        functools.partial(kernel, heads, tuple(x is not None for x in extras)),
        grid=(patterns, count),
        in_specs=[
            *(spec(x.shape, "rows") for x in rows),
            *(spec(x.shape, kind) for x, kind in present),
        ],
        out_specs=[spec(shape, kind) for shape, _, kind in outputs],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs],
        # In order: sums over the rows stay on the chip while a pattern's rows go by.
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES
        ),
    )(*rows, *(x for x, _ in present))


def _take(refs: list[Any], present: tuple[bool, bool, bool]) -> tuple[Any, Any, Any]:
    """The references to mask, bias and scale at the front of `refs`, which are removed."""
    mask, bias, scale = (refs.pop(0) if there else None for there in present)
    return mask, bias, scale


def _arguments(head: int, heads: int, q: Any, k: Any, v: Any, extras: tuple[Any, Any, Any]) -> Any:
    size = q.shape[-1] // heads
    columns = slice(head * size, (head + 1) * size)
    mask, bias, scale = extras
    return (
        *(ref[0, 0, :, columns] for ref in (q, k, v)),
        None if mask is None else mask[0, 0],
        None if bias is None else bias[0, head],
        None if scale is None else scale[head : head + 1],
    )


def _forward(heads: int, present: tuple[bool, bool, bool], *references: Any) -> None:
    q, k, v, *refs = references
    extras = _take(refs, present)
    (out,) = refs
    size = q.shape[-1] // heads
    for head in range(heads):
        y = one_head(*_arguments(head, heads, q, k, v, extras))
        out[0, 0, :, head * size : (head + 1) * size] = y.astype(out.dtype)


def _backward(heads: int, present: tuple[bool, bool, bool], *references: Any) -> None:
    q, k, v, gradient, *refs = references
    extras = _take(refs, present)
    dq, dk, dv, *sums = refs
    size = q.shape[-1] // heads

    @pl.when(pl.program_id(1) == 0)
    def clear() -> None:
        for total in sums:
            total[...] = jnp.zeros_like(total)

    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        mask, *differentiated = _without_mask(_arguments(head, heads, q, k, v, extras))
        q_, k_, v_, *rest = differentiated

        def of_head(q_: Any, k_: Any, v_: Any, *rest: Any, mask: Any = mask) -> jax.Array:
            more = list(rest)
            bias = more.pop(0) if present[1] else None
            scale = more.pop(0) if present[2] else None
            return one_head(q_, k_, v_, mask, bias, scale)

        _, pull = jax.vjp(of_head, q_, k_, v_, *(x for x in rest if x is not None))
        found = pull(gradient[0, 0, :, columns].astype(jnp.float32))
        for ref, value in zip((dq, dk, dv), found[:3], strict=True):
            ref[0, 0, :, columns] = value.astype(ref.dtype)
        more = list(found[3:])
        if present[1]:
            sums[0][0, head] += more.pop(0)
        if present[2]:
            sums[-1][0, head : head + 1] += more.pop(0)


def _without_mask(arguments: Any) -> tuple[Any, ...]:
    q, k, v, mask, bias, scale = arguments
    return mask, q, k, v, bias, scale
