"""The hand-written gradient of a Dense layer's product."""

import jax
import numpy as np
import pytest

from alm_jax.models.linear import matmul

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("outputs", [3, 11])
@pytest.mark.parametrize("rows", [(4,), (2, 3), (2, 3, 2)])
def test_gradients_of_the_product(rows, outputs):
    """Every Dense layer, whether it narrows or widens, would learn something else."""
    x, kernel = RNG.standard_normal((*rows, 5)), RNG.standard_normal((5, outputs))
    g = RNG.standard_normal((*rows, outputs))
    product, pull_back = jax.vjp(matmul, np.float32(x), np.float32(kernel))
    of_x, of_kernel = pull_back(np.float32(g))
    # Sums of at most 12 products of float32 numbers around 1.
    np.testing.assert_allclose(product, x @ kernel, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x, g @ kernel.T, rtol=1e-5, atol=1e-5)
    expected = x.reshape(-1, 5).T @ g.reshape(-1, outputs)
    np.testing.assert_allclose(of_kernel, expected, rtol=1e-5, atol=1e-5)
