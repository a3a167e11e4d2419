"""Patches against plain loops over the spectrogram."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.audio.patches import Patches, grid_size, patchify, take
from tests.quick_jit import quick_jit

B, T, F, TIME, FREQ = 5, 22, 12, 4, 3
ROWS = F // FREQ
FRAMES = np.array([22, 20, 9, 3, 1], np.int32)
SILENCE = -2.5
MEL = np.random.default_rng(0).standard_normal((B, T, F)).astype(np.float32)
MEL[np.arange(T) >= FRAMES[:, None]] = SILENCE


@functools.partial(quick_jit, static_argnames="tail")
def cut(mel, frames, tail):
    return patchify(mel, frames, patch_time=TIME, patch_freq=FREQ, tail=tail, silence=SILENCE)


def expected(mel, frames, tail):
    """The (time, freq, pixels) of one clip's patches, by slicing."""
    whole = -(-frames // TIME) if tail == "keep" else max(1, frames // TIME)
    mel = np.concatenate([mel, np.full((TIME, F), SILENCE, np.float32)])
    return [
        (t, f, mel[t * TIME : (t + 1) * TIME, f * FREQ : (f + 1) * FREQ].ravel())
        for t in range(whole)
        for f in range(ROWS)
    ]


@pytest.mark.parametrize("tail", ["drop", "keep"])
def test_every_patch_is_the_slice_at_its_place(tail):
    """Pixels in another order, or a wrong place, make released encoders useless in silence."""
    patches = cut(MEL, FRAMES, tail)
    assert patches.values.shape == (B, grid_size(T, F, TIME, FREQ, tail), TIME * FREQ)
    for row in range(B):
        want = expected(MEL[row], FRAMES[row], tail)
        mask = np.asarray(patches.mask[row])
        assert mask.sum() == len(want)
        assert mask[: len(want)].all()
        for slot, (time, freq, pixels) in enumerate(want):
            assert (patches.time[row, slot], patches.freq[row, slot]) == (time, freq)
            np.testing.assert_array_equal(patches.values[row, slot], pixels)


@pytest.mark.parametrize("tail", ["drop", "keep"])
def test_padding_slots_hold_zeros(tail):
    """What is left in a padding slot would leak one clip's batch into its embedding."""
    patches = cut(MEL, FRAMES, tail)
    padding = ~np.asarray(patches.mask)
    assert padding.any()
    for part in (patches.values, patches.time, patches.freq):
        assert not np.asarray(part)[padding].any()


def test_tail_of_a_clip_does_not_depend_on_the_width_of_its_batch():
    """The same file would get another embedding when a longer one is in its batch."""
    narrow = cut(MEL[2:3, :9], FRAMES[2:3], "keep")
    wide = cut(MEL, FRAMES, "keep")
    slots = narrow.values.shape[1]
    for a, b in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(a[0], b[2, :slots])
    assert not wide.mask[2, slots:].any()


def test_ten_seconds_of_cacophony_are_496_patches():
    """The published sequence lengths (496 for 10 s, 1,496 for 30 s) would not be met."""
    assert grid_size(1000, 128, 16, 16, "drop") == 496
    assert grid_size(3000, 128, 16, 16, "drop") == 1496
    assert grid_size(1000, 128, 16, 16, "keep") == 504


def test_wrong_settings_are_named():
    """A typing error in the config would surface as a shape error deep inside XLA."""
    with pytest.raises(ValueError, match=r"patches\.tail is 'cut'.*drop.*keep"):
        patchify(jnp.zeros((1, 8, 12)), jnp.ones(1, int), patch_time=4, patch_freq=3, tail="cut")
    with pytest.raises(ValueError, match=r"patches\.freq=5 does not divide the 12 mel bins"):
        patchify(jnp.zeros((1, 8, 12)), jnp.ones(1, int), patch_time=4, patch_freq=5)


def test_take_gathers_slots_with_their_places():
    """Masking would hand the tower pixels from one place with the position of another."""
    patches = cut(MEL, FRAMES, "drop")
    index = np.array([[3, 0, 19], [7, 7, 2], [4, 1, 9], [0, 3, 4], [2, 0, 0]])
    valid = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0]], bool)
    taken: Patches = quick_jit(take)(patches, index, valid)
    for row in range(B):
        for k in range(3):
            # A slot that was padding before stays padding, whatever `valid` says.
            real = valid[row, k] and bool(patches.mask[row, index[row, k]])
            assert taken.mask[row, k] == real
            for got, source in zip(taken[:3], patches[:3], strict=True):
                want = source[row, index[row, k]] if real else np.zeros_like(got[row, k])
                np.testing.assert_array_equal(got[row, k], want)
