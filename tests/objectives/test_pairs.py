"""Losses over all pairs against float64 NumPy, their gradients against finite differences.

On several devices: tests/parallel/test_sharding.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.objectives import pairs
from alm_jax.parallel import ring
from tests.objectives import pairs_reference as reference
from tests.quick_jit import quick_jit

B, J = 7, 5
RNG = np.random.default_rng(0)
AUDIO, TEXT = reference.unit(RNG, B, J), reference.unit(RNG, B, J)
SCALE, BIAS = np.float32(7.4), np.float32(-1.3)
GROUP = np.array([3, 8, 8, 3, 5, 3, 2], np.int32)


@pytest.fixture(params=["at once", "in tiles"])
def tiles(request, monkeypatch):
    """Three tiles of which the last is smaller: 3 + 3 + 1 rows."""
    if request.param == "in tiles":
        monkeypatch.setattr(ring, "TILE_ROWS", 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("group", [None, GROUP], ids=["all", "grouped"])
def test_info_nce(group, smoothing, tiles):
    """Training would minimise something else; NaN gradients would come from ignored pairs."""

    def loss(audio, text, scale):
        to_text, to_audio, hits = pairs.info_nce(audio, text, scale, group, smoothing)
        return to_text + 0.7 * to_audio, (to_text, to_audio, hits)

    def wide(audio, text, scale):
        a, b = reference.info_nce(audio, text, scale, group, smoothing)
        return a + 0.7 * b

    arguments = [AUDIO, TEXT, SCALE]
    run = quick_jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, found), grads = run(*arguments)
    want = reference.info_nce(*arguments, group, smoothing)
    np.testing.assert_allclose(found[:2], want, rtol=2e-6)
    assert found[2] == pytest.approx(np.mean((AUDIO @ TEXT.T).argmax(1) == np.arange(B)))
    for grad, slope in zip(grads, reference.slopes(wide, arguments), strict=True):
        np.testing.assert_allclose(grad, slope, atol=2e-6)


@pytest.mark.parametrize("group", [None, GROUP], ids=["all", "grouped"])
def test_sigmoid(group, tiles):
    """As above, for the other loss."""

    def loss(*arguments):
        value, hits = pairs.sigmoid(*arguments, group)
        return 0.7 * value, hits

    arguments = [AUDIO, TEXT, SCALE, BIAS]
    run = quick_jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    (value, hits), grads = run(*arguments)
    want = reference.sigmoid(*arguments, group)
    assert value == pytest.approx(0.7 * want, rel=2e-6)
    assert pairs.sigmoid(*arguments, group)[0] == pytest.approx(want, rel=2e-6)
    assert hits == pytest.approx(np.mean((AUDIO @ TEXT.T).argmax(1) == np.arange(B)))
    slopes = reference.slopes(lambda *x: 0.7 * reference.sigmoid(*x, group), arguments)
    for grad, slope in zip(grads, slopes, strict=True):
        np.testing.assert_allclose(grad, slope, atol=2e-6)


def test_first_of_equally_similar_captions_counts(tiles):
    """A collapsed model would look perfect, or its figure would depend on the tiles."""
    same = jnp.ones((B, J)) / np.sqrt(J)
    assert pairs.info_nce(same, same, SCALE)[2] == pytest.approx(1 / B)


def test_extreme_temperature():
    """A learned temperature at its clamp would overflow into NaN."""
    grads = jax.grad(lambda a: pairs.info_nce(a, TEXT, jnp.float32(100))[0])(-TEXT)
    assert np.isfinite(grads).all()
    np.testing.assert_allclose(
        pairs.info_nce(-TEXT, TEXT, np.float32(100))[0],
        reference.info_nce(-TEXT, TEXT, 100, None, 0.0)[0],
        rtol=2e-6,
    )
