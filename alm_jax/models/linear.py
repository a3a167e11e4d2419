"""Dense layers and tables that keep the batch spread over the devices.

With `fsdp`, the width of a kernel or a table and the batch lie on the same devices. Left alone, the
compiler may gather the batch, or deal its width out, at every layer, rather than gather the
parameter, which is smaller.

Shapes: R rows of the table, D width; I inputs, O outputs of a kernel.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from alm_jax.parallel.sharding import constrain

# `jax.ad_checkpoint` name of what a Dense layer's matrix product returns.
PRODUCT = "product"


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Product [..., O] of x [..., I] and a kernel [I, O], in their dtype.

    The gradient of the kernel is x^T g. On the CPU, XLA writes its left side out transposed before
    every such product, computing an activation once more, at the cost of an eighth of a layer's
    time where that is the wider one: so the narrower of x and g stands there.
    """
    return _contract(x, kernel, (x.ndim - 1,), (0,))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    wide = x.shape[-1] > g.shape[-1]
    of_kernel = _contract(g, x, rows, rows).T if wide else _contract(x, g, rows, rows)
    return _contract(g, kernel, (g.ndim - 1,), (1,)), of_kernel


def _contract(
    x: jax.Array, y: jax.Array, of_x: tuple[int, ...], of_y: tuple[int, ...]
) -> jax.Array:
    return jax.lax.dot_general(x, y, ((of_x, of_y), ((), ())))


matmul.defvjp(_forward, _backward)


class Linear(nnx.Linear):
    """nnx.Linear whose kernel names its logical axes, and whose activations follow them."""

    def __init__(self, *args: Any, **fields: Any):
        super().__init__(*args, dot_general=_dot_general, **fields)

    def __call__(self, inputs: jax.Array, *args: Any, **fields: Any) -> jax.Array:
        """[..., outputs] from [..., inputs]; the first axis is the batch's (or begins with it)."""
        inward, outward = self.kernel.get_metadata()["axes"]
        between = (None,) * (inputs.ndim - 2)
        outputs = super().__call__(constrain(inputs, "batch", *between, inward), *args, **fields)
        return constrain(outputs, "batch", *between, outward)


def lookup(table: nnx.Param, index: jax.Array) -> jax.Array:
    """Rows [..., D] of a table [R, D] whose parameter names its logical axes."""
    rows, _ = table.get_metadata()["axes"]
    found = jnp.take(constrain(table.get_value(), rows), index, axis=0)
    return constrain(found, "batch") if index.ndim > 1 else found


def _dot_general(x: jax.Array, kernel: jax.Array, *dimensions: Any, **fields: Any) -> jax.Array:
    """What nnx.Linear calls, always for these dimensions and with nothing else asked for."""
    return checkpoint_name(matmul(x, kernel), PRODUCT)
