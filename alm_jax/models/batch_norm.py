"""Batch normalisation: the one layer whose state is more than its parameters.

The running statistics are `nnx.BatchStat` variables. A training step puts the model into training
mode (`model.train()`), in which a batch norm uses the batch's statistics and moves the running
ones; the step carries them on in `TrainState.stats`. Everywhere else a model computes with the
running ones. Under jit the batch is the global one, so statistics are those of all devices.

Source: PyTorch's BatchNorm (the running variance is the unbiased one), LAION-CLAP (bn0, AFF).
Shapes: C channels, the last axis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class BatchNorm(nnx.Module):
    """Normalises each channel over all other axes, in float32."""

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1):
        """`momentum` is the share of the batch in the new running statistics."""
        self.eps = eps
        self.momentum = momentum
        self.use_running_average = True  # set by nnx.Module.train and .eval
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32), axes=(None,))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32), axes=(None,))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32), axes=(None,))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32), axes=(None,))

    def coefficients(
        self, x: jax.Array, weight: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What the layer does to x [..., C], as a factor [C] and a summand [C].

        In training mode the statistics are those of x, and the running ones move.

        Args:
          x: the values to normalise.
          weight: broadcastable to x [..., 1], 0 for values that do not count. Where none counts,
            the running statistics stay, and are used.
        """
        mean, var = self.mean.get_value(), self.var.get_value()
        if not self.use_running_average:
            x = x.astype(jnp.float32)
            axes = tuple(range(x.ndim - 1))
            ones = jnp.ones((*x.shape[:-1], 1), jnp.float32)
            counted = ones if weight is None else ones * weight
            total = counted.sum()
            count = jnp.maximum(total, 1.0)
            batch_mean = jnp.sum(x * counted, axis=axes) / count
            batch_var = jnp.sum(jnp.square(x - batch_mean) * counted, axis=axes) / count
            unbiased = batch_var * count / jnp.maximum(count - 1.0, 1.0)
            step = jnp.where(total > 0, self.momentum, 0.0)
            self.mean[...] = mean + step * (jax.lax.stop_gradient(batch_mean) - mean)
            self.var[...] = var + step * (jax.lax.stop_gradient(unbiased) - var)
            mean = jnp.where(total > 0, batch_mean, mean)
            var = jnp.where(total > 0, batch_var, var)
        factor = self.scale.get_value() * jax.lax.rsqrt(var + self.eps)
        return factor, self.bias.get_value() - mean * factor

    def __call__(self, x: jax.Array, weight: jax.Array | None = None) -> jax.Array:
        """Normalises x [..., C]; see `coefficients`. Returns float32."""
        factor, summand = self.coefficients(x, weight)
        return x.astype(jnp.float32) * factor + summand
