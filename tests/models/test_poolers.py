"""Poolers against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.models.poolers import Pooler
from tests.models.reference import dense, softmax
from tests.quick_jit import quick_jit
from tests.random_params import build

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5, 12)).astype(np.float32)
MASK = np.arange(5) < np.array([[5], [3], [1]])


def pool(kind, **fields):
    graph, params = build(
        lambda: Pooler(kind, 12, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0), **fields)
    )
    run = quick_jit(lambda params, x: nnx.merge(graph, params)(x, MASK))
    padded = np.where(MASK[..., None], X, 7.0).astype(np.float32)
    got = run(params, X)
    np.testing.assert_array_equal(got, run(params, padded))
    return got, params


@pytest.mark.parametrize(("heads", "output"), [(3, True), (1, False)], ids=["audio", "text"])
def test_attention_pooler(heads, output):
    """Embeddings would be the wrong average, or read padding (checked in `pool`)."""
    got, params = pool("attention", heads=heads, output=output)
    k, v = dense(params["key"], X), dense(params["value"], X)
    size = 12 // heads
    parts = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = k[..., part] @ params["query"][0, part].astype(np.float64) / np.sqrt(size)
        weights = softmax(np.where(MASK, logits, -np.inf))
        parts.append(np.einsum("bk,bke->be", weights, v[..., part]))
    want = np.concatenate(parts, axis=-1)
    if output:
        want = dense(params["out"], want)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_mean_and_first():
    """The mean would include padding, which shortens the embeddings of short clips."""
    want = [X[row, : MASK[row].sum()].astype(np.float64).mean(0) for row in range(3)]
    np.testing.assert_allclose(pool("mean")[0], want, atol=1e-6)
    np.testing.assert_array_equal(pool("first")[0], X[:, 0])


def test_unknown_pooler_is_named():
    """A typing error in the config would surface as a missing attribute."""
    with pytest.raises(ValueError, match=r"pooler is 'max'.*attention"):
        pool("max")
