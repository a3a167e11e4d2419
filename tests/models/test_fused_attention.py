"""The attention kernel, interpreted on the CPU, against attention as XLA computes it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from alm_jax.models import fused_attention
from alm_jax.models.fused_attention import Extras, additive, fused
from alm_jax.models.layers import Attention, attend
from alm_jax.models.swin import SwinAttention, SwinStageConfig
from alm_jax.models.windows import WindowAttention, WindowConfig, WindowGrid, fused_windows
from alm_jax.parallel.mesh import in_mesh
from tests.quick_jit import quick_jit

# Sums of float32 products in another order; gradients are sums of a few hundred of them.
CLOSE = dict(rtol=2e-5, atol=2e-5)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The kernel runs without a TPU, and `by_platform` takes what it would take there."""
    call = fused_attention.pl.pallas_call
    monkeypatch.setattr(
        fused_attention.pl,
        "pallas_call",
        lambda *args, **options: call(
            *args, **(options | {"interpret": True, "compiler_params": None})
        ),
    )


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_gradients(function, *operands):
    """The value, and the gradients of its product with a fixed random array."""

    def scalar(*operands):
        value = function(*operands)
        return jnp.sum(value * draw(*value.shape, seed=9)), value

    numbers = tuple(range(len(operands)))
    (_, value), gradients = quick_jit(jax.value_and_grad(scalar, argnums=numbers, has_aux=True))(
        *operands
    )
    return value, gradients


def compare(function, reference, *operands):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **CLOSE),
        value_and_gradients(function, *operands),
        value_and_gradients(reference, *operands),
    )


@pytest.mark.parametrize("masked", ["keys", "causal", "nothing"])
def test_rows_of_a_vit_and_of_captions(masked):
    """Training on a TPU would be of another model than on the CPU."""
    q, k, v = (draw(3, length, 4, 6, seed=i) for i, length in enumerate((7, 5, 5)))
    mask = None
    if masked == "keys":
        mask = jnp.arange(5)[None, None, None] < jnp.array([5, 1, 3])[:, None, None, None]
    elif masked == "causal":
        mask = jnp.tril(jnp.ones((7, 5), bool))[None, None]

    def kernel(q, k, v):
        rows = (x.reshape(3, 1, x.shape[1], 24) for x in (q, k, v))
        extras = Extras(None if mask is None else additive(mask))
        return fused(*rows, 4, extras).reshape(q.shape)

    compare(kernel, lambda q, k, v: attend(q, k, v, mask), q, k, v)


@pytest.mark.parametrize("moved", [False, True])
def test_windows_of_the_audiomae_decoder(moved):
    """The decoder would see other windows on a TPU, or leak between neighbours."""
    config = WindowConfig(width=16, depth=2, heads=2, mlp_dim=16, window=(2, 2), shift=(1, 0))
    layer = WindowAttention(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    grid = WindowGrid.of(8, 4, config)
    operands = [draw(3, 2, 16, 16, seed=i) for i in range(3)]
    operands += [draw(2, 4, 4, seed=3), jnp.array([0.5, 1.5])]
    compare(
        functools.partial(fused_windows, grid, moved, 2),
        functools.partial(layer._attend, grid, moved),
        *operands,
    )


@pytest.mark.parametrize("moved", [False, True])
def test_windows_of_htsat(moved):
    """LAION-CLAP's tower would compute something else on a TPU."""
    config = SwinStageConfig(width=16, depth=2, heads=2, mlp_dim=16, window=2)
    layer = SwinAttention(config, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    grid = WindowGrid(4, 4, (2, 2), (1, 1))
    operands = [draw(2, 2, 8, 16, seed=i) for i in range(3)] + [draw(2, 4, 4, seed=3)]
    compare(
        functools.partial(fused_windows, grid, moved, 2),
        functools.partial(layer._attend, grid, moved),
        *operands,
    )


def test_every_device_computes_its_rows():
    """On a pod the gradients of shared biases would miss the other devices' clips."""
    if jax.device_count() < 4:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
        test = f"{__file__}::test_every_device_computes_its_rows"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
            env=os.environ | {"XLA_FLAGS": flags},
            cwd=Path(__file__).parents[2],
            check=True,
        )
        return
    names = ("data", "fsdp", "tensor")
    auto = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 1, 2), names, axis_types=auto, devices=jax.devices()[:4])
    config = WindowConfig(width=16, depth=2, heads=2, mlp_dim=16, window=(2, 2), shift=(1, 0))
    grid = WindowGrid.of(8, 4, config)
    operands = [draw(4, 2, 16, 16, seed=i) for i in range(3)]
    operands += [draw(2, 4, 4, seed=3), jnp.array([0.5, 1.5])]
    kernel = functools.partial(fused_windows, grid, True, 2)
    on_mesh = [jax.device_put(x, NamedSharding(mesh, PartitionSpec())) for x in operands]
    expected = value_and_gradients(kernel, *operands)
    found = value_and_gradients(in_mesh(mesh)(kernel), *on_mesh)
    jax.tree.map(functools.partial(np.testing.assert_allclose, **CLOSE), found, expected)


def test_elsewhere_nothing_changes():
    """On a CPU or a GPU a config with fused attention would train another model."""
    x, mask = (
        draw(2, 5, 12),
        jnp.arange(5)[None, None, None] < jnp.array([5, 2])[:, None, None, None],
    )

    def layer(attention):
        made = Attention(
            12, 3, init="xavier", dtype=jnp.float32, rngs=nnx.Rngs(0), attention=attention
        )
        return lambda x: made(x, mask=mask)

    compare(layer("fused"), layer("xla"), x)
