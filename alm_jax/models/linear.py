"""Dense layers that keep the batch spread over the devices.

With `fsdp`, a kernel's input dimension and the batch lie on the same devices. Left alone, the
compiler may gather the batch, or deal its width out, at every layer, rather than gather the kernel,
which is smaller.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from alm_jax.parallel.sharding import constrain


class Linear(nnx.Linear):
    """nnx.Linear whose kernel names its logical axes, and whose activations follow them."""

    def __call__(self, inputs: jax.Array, **fields: Any) -> jax.Array:
        """[..., outputs] from [..., inputs]; the first axis is the batch's (or begins with it)."""
        inward, outward = self.kernel.get_metadata()["axes"]
        between = (None,) * (inputs.ndim - 2)
        outputs = super().__call__(constrain(inputs, "batch", *between, inward), **fields)
        return constrain(outputs, "batch", *between, outward)
