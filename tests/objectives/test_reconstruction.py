"""The reconstruction loss against float64 NumPy."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alm_jax.audio.masking import View
from alm_jax.audio.patches import Patches
from alm_jax.errors import UserError
from alm_jax.objectives.reconstruction import patch_target, reconstruction

B, M, P = 3, 4, 6
RNG = np.random.default_rng(0)
VALUES = (RNG.standard_normal((B, M, P)) * 3 + 1).astype(np.float32)
MASK = np.arange(M) < np.array([[4], [3], [1]])
PREDICTED = RNG.standard_normal((B, M, P)).astype(np.float32)


def test_target_raw_or_normalised_per_patch():
    """AudioMAE's recipe divides by the unbiased deviation; another one shifts every loss."""
    assert patch_target(VALUES, False) is VALUES
    wide = VALUES.astype(np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(
        wide.var(-1, ddof=1, keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(patch_target(jnp.asarray(VALUES), True), want, atol=2e-6)
    silent = patch_target(jnp.full((1, 1, P), -0.4), True)
    np.testing.assert_allclose(silent, 0, atol=1e-3)


def forward(values=VALUES, predicted=PREDICTED, decoder=True, masked=True):
    dropped = Patches(jnp.asarray(values), None, None, jnp.asarray(MASK))

    def decode(hidden, visible, wanted, key):
        assert (hidden, visible, key) == ("hidden", "visible", "key of mae")
        assert wanted is dropped
        return jnp.asarray(predicted)

    return SimpleNamespace(
        view=View("visible", dropped if masked else None),
        audio_hidden="hidden",
        model=SimpleNamespace(mae_decoder=decode if decoder else None),
        key_for=lambda name: f"key of {name}",
    )


RAW = ConfigDict(dict(normalize_target=False))


@pytest.mark.parametrize("normalize", [False, True])
def test_mean_over_the_dropped_patches_of_the_batch(normalize):
    """Short clips would count as much as long ones, or their padding as sound."""
    loss, metrics = reconstruction(forward(), ConfigDict(dict(normalize_target=normalize)))
    target = np.asarray(patch_target(jnp.asarray(VALUES), normalize), np.float64)[MASK]
    assert loss == pytest.approx(np.mean((PREDICTED[MASK] - target) ** 2), rel=2e-6)
    assert metrics["reconstruction_loss"] == loss
    flat = np.mean((target - target.mean(0)) ** 2)
    assert metrics["reconstruction_predict_mean"] == pytest.approx(flat, rel=2e-6)


def test_padding_changes_nothing():
    """What the decoder says about padding would be trained on."""
    values, predicted = VALUES.copy(), PREDICTED.copy()
    values[~MASK], predicted[~MASK] = 1e3, -1e3
    want, got = reconstruction(forward(), RAW), reconstruction(forward(values, predicted), RAW)
    assert want == got


def test_predicting_the_mean_costs_what_is_called_chance():
    """A loss that sits at the mean could not be recognised as one."""
    mean = np.broadcast_to(VALUES[MASK].mean(0), VALUES.shape)
    loss, metrics = reconstruction(forward(predicted=mean), RAW)
    assert loss == pytest.approx(float(metrics["reconstruction_predict_mean"]), rel=1e-5)


def test_wrong_settings_are_named():
    """Stage 1 without masking would learn the identity."""
    with pytest.raises(ValueError, match=r"set masking\.ratio > 0"):
        reconstruction(forward(masked=False), RAW)
    with pytest.raises(UserError, match=r"config\.model\.mae_decoder"):
        reconstruction(forward(decoder=False), RAW)
