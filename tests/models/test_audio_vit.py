"""The ViT tower with a class token, and the classifier on it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.audio.patches import Patches
from alm_jax.models.audio_vit import AudioViT, VitConfig
from alm_jax.models.classifier import Classifier
from alm_jax.models.patch_positions import PatchShape
from tests.models.reference import dense, layer_norm
from tests.quick_jit import quick_jit
from tests.random_params import build

B, N, D, P = 2, 5, 8, 6
CONFIG = VitConfig(
    width=D, depth=2, heads=2, mlp_dim=16, positions="sincos_2d", class_token=True, init="xavier"
)
RNG = np.random.default_rng(0)
MASK = np.arange(N) < np.array([[5], [3]])


def patches(values):
    slot = np.arange(N) * MASK
    parts = np.where(MASK[..., None], values, 0), slot // 2, slot % 2, MASK
    return Patches(*map(jnp.asarray, parts))


VALUES = RNG.standard_normal((B, N, P)).astype(np.float32)


def tower(**fields):
    config = dataclasses.replace(CONFIG, **fields)
    return build(
        lambda: AudioViT(config, PatchShape(P, 2), dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    )


@quick_jit
def states(params, patches):
    return nnx.merge(tower()[0], params)(patches)


def test_class_token_comes_first_and_is_no_patch():
    """Poolers would average the class token in, or drop the first patch."""
    graph, params = tower()
    found = states(params, patches(VALUES))
    assert found.shape == (B, 1 + N, D)
    mask = nnx.merge(graph, params).state_mask(patches(VALUES))
    np.testing.assert_array_equal(mask, np.pad(MASK, ((0, 0), (1, 0))))
    params["class_token"] = -2.0 * params["class_token"]
    assert np.abs(states(params, patches(VALUES)) - found)[:, 1:].max() > 1e-3


def test_class_token_sees_patches_and_no_padding():
    """A clip's embedding would depend on how much longer another clip of its batch is."""
    _, params = tower()
    found = states(params, patches(VALUES))
    short = patches(VALUES)._replace(values=jnp.asarray(VALUES))  # padding that is not zero
    real = np.pad(MASK, ((0, 0), (1, 0)), constant_values=True)
    np.testing.assert_allclose(states(params, short)[real], found[real], atol=1e-6)
    other = VALUES.copy()
    other[:, 2] += 1.0
    assert np.abs(states(params, patches(other)) - found)[:, 0].max(axis=-1).min() > 1e-3


def test_without_final_norm():
    """Fine-tuned AudioMAE would be normalised twice."""
    graph, params = tower(final_norm=False)
    assert "norm" not in params
    whole = tower()[1]
    raw = quick_jit(lambda p: nnx.merge(graph, p)(patches(VALUES)))(
        {name: whole[name] for name in params}
    )
    want = layer_norm(whole["norm"], np.asarray(raw), CONFIG.eps)
    np.testing.assert_allclose(states(whole, patches(VALUES)), want, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_classifier(pool):
    """Labels would be read from padding, or from the class token although it was not trained."""
    graph, params = build(
        lambda: Classifier(4, D, pool=pool, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    )
    hidden = RNG.standard_normal((B, 1 + N, D)).astype(np.float32)
    mask = np.pad(MASK, ((0, 0), (1, 0)))
    found = nnx.merge(graph, params)(jnp.asarray(hidden), jnp.asarray(mask))
    for clip in range(B):
        x = hidden[clip, 0] if pool == "first" else hidden[clip][mask[clip]].mean(axis=0)
        want = dense(params["predict"], layer_norm(params["norm"], x, 1e-6))
        np.testing.assert_allclose(found[clip], want, atol=1e-5)


def test_classifier_starts_undecided():
    """Fine-tuning would begin with random labels that are strongly held."""
    head = Classifier(527, 64, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    kernel = np.asarray(head.predict.kernel.get_value())
    assert kernel.std() == pytest.approx(2e-5, rel=0.05)
    assert not np.asarray(head.predict.bias.get_value()).any()
