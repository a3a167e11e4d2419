"""Decoders of masked autoencoders: what may not change a prediction, and what must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.audio.patches import Patches
from alm_jax.errors import UserError
from alm_jax.models.mae_decoders import build_decoder
from alm_jax.models.patch_positions import PatchShape
from tests.quick_jit import quick_jit
from tests.random_params import build

C, R, P, D = 4, 2, 6, 8
SHAPE = PatchShape(P, R, C)
COMMON = dict(width=12, depth=2, heads=2, mlp_dim=16, positions="sincos_2d")
KINDS = {
    "concatenated": COMMON,
    "vit": COMMON,
    "swin": COMMON | dict(window=(2, 2), shift=(1, 0), bias_hidden=4),
}
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((2, 4, D)).astype(np.float32)  # class token and three patches
VISIBLE, DROPPED = np.array([[0, 3, 6], [1, 2, 0]]), np.array([[1, 2, 4, 5, 7], [0, 3, 4, 5, 6]])
SEEN = np.array([[1, 1, 1], [1, 1, 0]], bool)  # the second clip has one slot of padding


def at(places, mask=None):
    mask = np.ones(places.shape, bool) if mask is None else mask
    places = np.where(mask, places, 0)
    return Patches(None, jnp.asarray(places // R), jnp.asarray(places % R), jnp.asarray(mask))


def make(kind, shape=SHAPE, **fields):
    fields = ConfigDict(KINDS[kind] | fields | {"decoder": kind})
    return build(
        lambda: build_decoder(fields, shape, D, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    )


def predict(kind, hidden=HIDDEN, visible=VISIBLE, seen=SEEN, dropped=DROPPED):
    graph, params = make(kind)
    run = quick_jit(lambda p, *args: nnx.merge(graph, p)(*args))
    return np.asarray(run(params, hidden, at(visible, seen), at(dropped)))


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_the_patches_is_free(kind):
    """A prediction would depend on the order in which masking happens to give the patches."""
    found = predict(kind)
    assert found.shape == (2, 5, P)
    assert found.dtype == np.float32
    order, backwards = [2, 0, 1], [4, 3, 2, 1, 0]
    tokens = [0, 3, 1, 2]
    moved = predict(
        kind, HIDDEN[:, tokens], VISIBLE[:, order], SEEN[:, order], DROPPED[:, backwards]
    )
    np.testing.assert_allclose(moved[:, backwards], found, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_slots_do_not_matter(kind):
    """Clips of one batch would leak into each other's reconstruction."""
    other = HIDDEN.copy()
    other[1, 3] += 10.0
    found = predict(kind)
    np.testing.assert_array_equal(predict(kind, other), found)
    other[1, 2] += 1.0
    assert np.abs(predict(kind, other)[1] - found[1]).max() > 1e-3


@pytest.mark.parametrize(("kind", "matters"), [("concatenated", 0), ("vit", 1), ("swin", 0)])
def test_class_token_is_read_by_the_plain_decoder_alone(kind, matters):
    """AudioMAE's window decoder has no class token; its plain one attends to it."""
    other = HIDDEN.copy()
    other[:, 0] += 1.0
    assert (np.abs(predict(kind, other) - predict(kind)).max() > 1e-3) == bool(matters)
    if matters:  # and does without, where the encoder has none
        assert np.isfinite(predict(kind, HIDDEN[:, 1:])).all()


def test_config_errors_are_named():
    """A misspelt field would be ignored, or crash in a constructor."""
    with pytest.raises(UserError, match=r"decoder='vitt': must be one of"):
        build_decoder(ConfigDict(COMMON | {"decoder": "vitt"}), SHAPE, D, dtype=None, rngs=None)
    with pytest.raises(UserError, match=r"fields \['windw'\], which the decoder 'swin'"):
        make("swin", windw=(2, 2))
    with pytest.raises(UserError, match=r"needs clips of one length: set patches\.frames"):
        make("swin", PatchShape(P, R))


def test_fields_of_older_runs():
    """A decoder saved before it had a name would not load."""
    fields = ConfigDict({k: v for k, v in COMMON.items() if k != "positions"})
    graph, abstract = nnx.split(
        nnx.eval_shape(
            lambda: build_decoder(fields, SHAPE, D, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
        )
    )
    assert {"restore", "positions"} <= nnx.to_pure_dict(abstract).keys()
    del graph
    assert jax.tree.leaves(nnx.to_pure_dict(abstract)["positions"])[0].shape == (R, 12)
