"""Operations of a step: against XLA's count of a program without loops, and a sum by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from alm_jax.models.transformer import Transformer, TransformerConfig
from alm_jax.perf import flops


def stack(**fields):
    config = TransformerConfig(width=64, depth=3, heads=4, mlp_dim=256, **fields)
    model = Transformer(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)

    def loss(params, x):
        return jnp.sum(nnx.merge(graph, params)(x) ** 2)

    return jax.grad(loss, argnums=(0, 1)), (params, jnp.zeros((2, 32, 64)))


def by_hand(layers=3, batch=2, length=32, width=64, hidden=256):
    """Products of a layer, forward once and backward twice."""
    dense = 4 * width * width + 2 * width * hidden
    attention = 2 * length * width  # queries with keys, weights with values
    return 3 * layers * 2 * batch * length * (dense + attention)


def test_layers_in_a_scan_count_as_often_as_they_run():
    """MFU would be that of one layer."""
    function, operands = stack()
    assert flops.count(jax.make_jaxpr(function)(*operands)) == by_hand()


def test_against_xla_without_a_loop():
    """Another counter would say something else of the same step."""
    function, operands = stack(unroll=3, activation="relu")
    cost = jax.jit(function).lower(*operands).compile().cost_analysis()
    counted = flops.count(jax.make_jaxpr(function)(*operands))
    # XLA also counts what is no product: norms, softmax; a few per cent here.
    assert counted < cost["flops"] < 1.15 * counted


def test_recomputation_is_executed_but_no_part_of_the_model():
    """A config would look better, the more it computes twice."""
    plain, operands = stack()
    again, _ = stack(remat="full")
    ratio = flops.count(jax.make_jaxpr(again)(*operands)) / by_hand()
    # The forward pass once more, but for each layer's last product, which no gradient needs.
    assert 1.2 < ratio < 1.334
    assert flops.count(jax.make_jaxpr(plain)(*operands)) == by_hand()


def test_convolutions():
    """A tower with convolutions would seem to cost nothing."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    jaxpr = jax.make_jaxpr(convolve)(jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5)))
    assert flops.count(jaxpr) == 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)


@pytest.mark.parametrize("passes", [1, flops.HIGHEST_PASSES])
def test_highest_precision_takes_six_passes(passes):
    """The log-mel front end's exact products would seem as cheap as bfloat16 ones."""
    product = lambda x: jnp.matmul(x, x, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    jaxpr = jax.make_jaxpr(product)(jnp.zeros((4, 4)))
    assert flops.count(jaxpr, passes=passes > 1) == passes * 2 * 4**3
