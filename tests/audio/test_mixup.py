"""Mixup of sounds and labels, against float64 loops."""

import jax
import numpy as np

from alm_jax.audio.mixup import mix_labels, mix_shares, mix_waveforms
from tests.quick_jit import quick_jit

S = 64


def keys(count):
    return jax.random.split(jax.random.key(7), count)


def test_waveforms_against_numpy():
    """Fine-tuning would hear other mixtures than the published recipe's, or clicks at the end."""
    rng = np.random.default_rng(0)
    lengths, others = np.array([64, 20, 33, 50]), np.array([40, 64, 33, 0])
    audio = rng.standard_normal((4, S)) + 0.5
    other = rng.standard_normal((4, S)) - 2.0
    share = np.array([0.3, 0.6, 0.5, 1.0])
    for row in range(4):
        audio[row, lengths[row] :] = other[row, others[row] :] = 0.0
    want = np.zeros_like(audio)
    for row in range(3):
        # As AudioMAE's dataset.py: the second clip is padded or cut to the length of the first.
        first = audio[row, : lengths[row]]
        second = np.zeros_like(first)
        cut = (other[row, : others[row]] - other[row, : others[row]].mean())[: len(first)]
        second[: len(cut)] = cut
        mixed = share[row] * (first - first.mean()) + (1 - share[row]) * second
        want[row, : lengths[row]] = mixed
    want[3] = audio[3]
    arrays = [np.asarray(x, np.float32) for x in (audio, other, share)]
    found = quick_jit(mix_waveforms)(arrays[0], lengths, arrays[1], others, arrays[2])
    np.testing.assert_allclose(found, want, atol=2e-6)  # float32 sums of 64 terms of size 1


def test_labels():
    """A class that both clips have would count half."""
    first = np.array([[True, True, False, False]])
    second = np.array([[True, False, True, False]])
    found = mix_labels(first, second, np.array([0.25], np.float32))
    np.testing.assert_allclose(found, [[1.0, 0.25, 0.75, 0.0]])


def test_shares_have_the_moments_of_the_beta_distribution():
    """One of the two clips would hardly be heard, or every mixture would be half and half."""
    length = np.full(4000, 9)
    length[::4] = 0
    shares = np.asarray(quick_jit(mix_shares)(keys(4000), length, 10.0))
    assert (shares[::4] == 1.0).all()
    drawn = shares[length > 0]
    # Beta(10, 10): mean 1/2, variance 1 / (4 * 21); three standard errors of 3,000 draws.
    assert abs(drawn.mean() - 0.5) < 3 * np.sqrt(1 / 84 / 3000)
    assert abs(drawn.var() * 84 - 1.0) < 0.08
    # A share follows from the clip's key alone, not from the number of devices or the batch.
    some = quick_jit(mix_shares)(keys(4000)[:6], length[:6], 10.0)
    np.testing.assert_array_equal(shares[:6], some)
