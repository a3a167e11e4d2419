"""Dense layers and tables that keep the batch spread over the devices.

With `fsdp`, the width of a kernel or a table and the batch lie on the same devices. Left alone, the
compiler may gather the batch, or deal its width out, at every layer, rather than gather the
parameter, which is smaller.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.parallel.sharding import constrain


class Linear(nnx.Linear):
    """nnx.Linear whose kernel names its logical axes, and whose activations follow them."""

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
