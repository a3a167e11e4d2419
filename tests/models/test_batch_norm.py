"""Batch norm against PyTorch's, and its running statistics through a training step."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from alm_jax.models.batch_norm import BatchNorm

RNG = np.random.default_rng(0)


def test_training_and_evaluation_are_torchs():
    """Statistics that move otherwise make an imported model drift when it is trained further."""
    theirs, ours = torch.nn.BatchNorm2d(3), BatchNorm(3)
    for step in range(3):
        x = (2.0 + step + RNG.standard_normal((4, 5, 6, 3)) * 3).astype(np.float32)
        ours.train()
        want = theirs.train()(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(ours(jnp.asarray(x)), want.detach(), atol=1e-5)
        np.testing.assert_allclose(ours.mean.get_value(), theirs.running_mean, rtol=1e-5)
        np.testing.assert_allclose(ours.var.get_value(), theirs.running_var, rtol=1e-5)
    ours.eval()
    want = theirs.eval()(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours(jnp.asarray(x)), want.detach(), atol=1e-5)


def test_rows_that_do_not_count():
    """Padding rows, or clips without excerpts, would move the statistics of the others."""
    x = RNG.standard_normal((6, 7, 2)).astype(np.float32)
    weight = np.array([1, 1, 0, 1, 0, 0], np.float32)[:, None, None]
    masked, alone = BatchNorm(2), BatchNorm(2)
    masked.train()
    alone.train()
    y = masked(jnp.asarray(x), weight)
    kept = np.flatnonzero(weight)
    np.testing.assert_allclose(y[kept], alone(jnp.asarray(x[kept])), atol=1e-5)
    np.testing.assert_allclose(masked.var.get_value(), alone.var.get_value(), rtol=1e-5)


def test_nothing_counts():
    """A batch without long clips would fill the fused branch with NaN, and so the whole model."""
    layer = BatchNorm(2)
    layer.train()
    x = RNG.standard_normal((3, 2)).astype(np.float32)
    y = layer(jnp.asarray(x), np.zeros((3, 1), np.float32))
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(layer.mean.get_value(), 0)
    np.testing.assert_array_equal(layer.var.get_value(), 1)


def test_gradients_are_torchs():
    """Training with batch statistics treated as constants converges to something else."""
    x = RNG.standard_normal((5, 3)).astype(np.float32)
    weight = RNG.standard_normal((5, 3)).astype(np.float32)
    graph, variables = nnx.split(BatchNorm(3))
    state = nnx.to_pure_dict(variables)

    def loss(x):
        layer = nnx.merge(graph, state)
        layer.train()
        return jnp.sum(layer(x) * weight)

    ours = jax.grad(loss)(jnp.asarray(x))
    given = torch.tensor(x, requires_grad=True)
    (torch.nn.BatchNorm1d(3)(given) * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(ours, given.grad, atol=1e-5)
