"""Window attention against plain loops over the grid, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.models.windows import WindowConfig, WindowGrid, WindowTransformer
from tests.models.reference import ACTIVATIONS, dense, layer_norm, softmax
from tests.quick_jit import quick_jit
from tests.random_params import build

B, D = 2, 8
SMALL = WindowConfig(width=D, depth=2, heads=2, mlp_dim=12, window=(4, 2), bias_hidden=6)
# Grid and config.
CASES = {
    "time": ((8, 4), SMALL),
    "both axes": ((8, 4), dataclasses.replace(SMALL, shift=(2, 1))),
    "incomplete": ((7, 3), SMALL),
    "one window": ((3, 2), SMALL),
    "never moved": ((8, 4), dataclasses.replace(SMALL, shift=(0, 0))),
}


def attend(params, x, heads, distances, allowed):
    """Scaled cosine attention of the patches x [K, D]; `allowed` [K, K] bool."""
    parts = [
        dense(params[name], x).reshape(len(x), heads, -1) for name in ("query", "key", "value")
    ]
    q, k, v = (part.transpose(1, 0, 2) for part in parts)
    norms = [np.linalg.norm(part, axis=-1) for part in (q, k)]
    logits = q @ k.transpose(0, 2, 1) / np.maximum(norms[0][:, :, None] * norms[1][:, None], 1e-6)
    logits /= np.maximum(params["tau"], 0.01)[:, None, None]
    bias = dense(params["bias_down"], np.maximum(dense(params["bias_up"], distances), 0))
    logits += bias.transpose(2, 0, 1) - 100.0 * ~allowed
    return dense(params["out"], (softmax(logits) @ v).transpose(1, 0, 2).reshape(x.shape))


def expected_layer(params, x, config, moved):
    """One layer over a grid [C, R, D] of whole windows."""
    columns, rows, _ = x.shape
    window = [min(w, n) for w, n in zip(config.window, x.shape, strict=False)]
    shift = [s * (n > w) * moved for s, w, n in zip(config.shift, window, x.shape, strict=False)]
    y = np.zeros_like(x)
    for first in range(0, columns, window[0]):
        for low in range(0, rows, window[1]):
            # Places of a moved window; beyond the edge it goes on at the other side.
            far = [
                (c + shift[0], r + shift[1])
                for c in range(first, first + window[0])
                for r in range(low, low + window[1])
            ]
            beyond = np.array([(c >= columns, r >= rows) for c, r in far])
            here = tuple(np.array([(c % columns, r % rows) for c, r in far]).T)
            d = np.array([[np.subtract(a, b) for b in far] for a in far])
            distances = np.sign(d) * np.log1p(np.abs(d))
            together = (beyond[:, None] == beyond[None]).all(-1)
            y[here] = attend(params["attention"], x[here], config.heads, distances, together)
    x = x + layer_norm(params["attention_norm"], y, config.eps)
    hidden = ACTIVATIONS["gelu"](dense(params["mlp"]["up"], x))
    return x + layer_norm(params["mlp_norm"], dense(params["mlp"]["down"], hidden), config.eps)


def make(config):
    graph, params = build(
        lambda: WindowTransformer(config, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    )
    # Drawn around zero, they would multiply the logits and their rounding by up to 100.
    params["blocks"]["attention"]["tau"] = np.array([[0.7, 1.2]] * config.depth, np.float32)
    return graph, params


@pytest.mark.parametrize("name", CASES)
def test_stack_against_loops(name):
    """A window, a shift or a distance in the wrong place trains a decoder nobody published."""
    (columns, rows), config = CASES[name]
    graph, params = make(config)
    x = np.random.default_rng(0).standard_normal((B, columns, rows, D)).astype(np.float32)
    found = quick_jit(lambda p, x: nnx.merge(graph, p)(x))(params, x)
    window = [min(w, n) for w, n in zip(config.window, (columns, rows), strict=True)]
    missing = [-n % w for w, n in zip(window, (columns, rows), strict=True)]
    for clip in range(B):
        want = np.pad(x[clip], ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        want = want.astype(np.float64)
        for layer in range(config.depth):
            of_layer = jax.tree.map(lambda p, i=layer: p[i], params["blocks"])
            want = expected_layer(of_layer, want, config, layer % 2 == 1)
        np.testing.assert_allclose(found[clip], want[:columns, :rows], atol=2e-5)


def test_window_order_is_undone():
    """Patches would come back at other places than they went in."""
    grid = WindowGrid.of(8, 6, dataclasses.replace(SMALL, window=(4, 3), shift=(2, 1)))
    x = jnp.arange(8.0 * 6).reshape(1, 8, 6, 1)
    windows = grid.to_windows(x)
    np.testing.assert_array_equal(grid.from_windows(windows), x)
    for place in ((0, 0), (4, 3)):  # the first window, and one in the middle
        at = (place[1] // 3, place[0] // 4)
        want = x[0, place[0] : place[0] + 4, place[1] : place[1] + 3, 0]
        np.testing.assert_array_equal(windows.reshape(2, 2, 4, 3)[at], want)
    moved = grid.from_windows(grid.roll(windows, -1))
    np.testing.assert_array_equal(moved, np.roll(x, (-2, -1), (1, 2)))
    np.testing.assert_array_equal(grid.roll(grid.roll(windows, -1), 1), windows)


def test_queries_of_zero_have_a_gradient():
    """A mask token that starts at zero would make the whole gradient not a number."""
    graph, params = make(SMALL)
    params["blocks"]["attention"]["query"] = jax.tree.map(
        np.zeros_like, params["blocks"]["attention"]["query"]
    )
    x = np.random.default_rng(0).standard_normal((1, 8, 4, D)).astype(np.float32)
    grads = quick_jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(x) ** 2)))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_temperature_has_a_floor():
    """A head whose temperature training has brought below zero would attend to the unlike."""
    graph, params = make(SMALL)
    x = np.random.default_rng(0).standard_normal((1, 8, 4, D)).astype(np.float32)
    run = quick_jit(lambda p: nnx.merge(graph, p)(x))
    outputs = []
    for tau in (-1.0, 0.01, 0.02):
        params["blocks"]["attention"]["tau"] = np.full((2, 2), tau, np.float32)
        outputs.append(run(params))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[1] - outputs[2]).max() > 1e-3


def test_bias_dropout_draws_for_every_layer():
    """The recipe's dropout would be off in training, or on in evaluation."""
    graph, params = make(dataclasses.replace(SMALL, bias_dropout=0.5))
    x = np.random.default_rng(0).standard_normal((1, 8, 4, D)).astype(np.float32)
    run = quick_jit(lambda p, key: nnx.merge(graph, p)(x, key))
    still, one, two = (run(params, k) for k in (None, jax.random.key(0), jax.random.key(1)))
    assert np.abs(one - two).max() > 1e-3 < np.abs(one - still).max()
    np.testing.assert_array_equal(one, run(params, jax.random.key(0)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(depth=3), "depth is 3"),
        (dict(shift=(4, 0)), r"shift is \(4, 0\)"),
        (dict(remat="all"), "remat is 'all'"),
    ],
)
def test_wrong_settings_are_named(fields, message):
    """A typing error would surface as a shape error deep inside XLA."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)
