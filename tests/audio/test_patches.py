"""Patches against plain loops over the spectrogram."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.audio.patches import PatchConfig, Patches, cut, grid_size, patchify, take
from tests.quick_jit import quick_jit

B, T, F, TIME, FREQ = 5, 22, 12, 4, 3
ROWS = F // FREQ
FRAMES = np.array([22, 20, 9, 3, 1], np.int32)
SILENCE = -2.5
MEL = np.random.default_rng(0).standard_normal((B, T, F)).astype(np.float32)
MEL[np.arange(T) >= FRAMES[:, None]] = SILENCE


@functools.partial(quick_jit, static_argnames="tail")
def side_by_side(mel, frames, tail):
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
    patches = side_by_side(MEL, FRAMES, tail)
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
    patches = side_by_side(MEL, FRAMES, tail)
    padding = ~np.asarray(patches.mask)
    assert padding.any()
    for part in (patches.values, patches.time, patches.freq):
        assert not np.asarray(part)[padding].any()


def test_tail_of_a_clip_does_not_depend_on_the_width_of_its_batch():
    """The same file would get another embedding when a longer one is in its batch."""
    narrow = side_by_side(MEL[2:3, :9], FRAMES[2:3], "keep")
    wide = side_by_side(MEL, FRAMES, "keep")
    slots = narrow.values.shape[1]
    for a, b in zip(narrow[:4], wide[:4], strict=True):
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
    patches = side_by_side(MEL, FRAMES, "drop")
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


OVERLAP = PatchConfig(TIME, FREQ, "drop", time_stride=3, freq_stride=2)


@pytest.mark.parametrize("tail", ["drop", "keep"])
def test_overlapping_patches(tail):
    """AST's and AudioMAE's stride of 10 would give pixels of other places."""
    config = dataclasses.replace(OVERLAP, tail=tail)
    patches = quick_jit(lambda m, n: cut(m, n, config, silence=SILENCE))(MEL, FRAMES)
    padded = np.concatenate([MEL, np.full((B, TIME, F), SILENCE, np.float32)], axis=1)
    rows = (F - FREQ) // 2 + 1  # the last bin fills no patch
    for row, frames in enumerate(FRAMES):
        over = max(0, int(frames) - TIME)
        columns = 1 + (-(-over // 3) if tail == "keep" else over // 3)
        assert patches.mask[row].sum() == columns * rows
        for slot in range(columns * rows):
            time, freq = divmod(slot, rows)
            assert (patches.time[row, slot], patches.freq[row, slot]) == (time, freq)
            here = padded[row, 3 * time : 3 * time + TIME, 2 * freq : 2 * freq + FREQ]
            np.testing.assert_array_equal(patches.values[row, slot], here.ravel())


@pytest.mark.parametrize("frames", [16, 24])
def test_clips_of_one_length(frames):
    """A fixed table of positions would be read past its end, or clips differ in their patches."""
    config = PatchConfig(TIME, FREQ, frames=frames)
    patches = quick_jit(lambda m, n: cut(m, n, config, silence=SILENCE))(MEL, FRAMES)
    assert config.fixed_columns == frames // TIME
    assert patches.mask.shape == (B, frames // TIME * ROWS)
    assert patches.mask.all()
    padded = np.concatenate([MEL, np.full((B, TIME, F), SILENCE, np.float32)], axis=1)[:, :frames]
    whole = patchify(padded, np.full(B, frames), patch_time=TIME, patch_freq=FREQ)
    np.testing.assert_array_equal(patches.values, whole.values)


def test_grids_of_audiomae():
    """Its checkpoints hold a position for each of 512 or 1,212 patches."""
    assert PatchConfig(16, 16, frames=1024).fixed_columns * PatchConfig(16, 16).rows(128) == 512
    stride = PatchConfig(16, 16, time_stride=10, freq_stride=10, frames=1024)
    assert (stride.fixed_columns, stride.rows(128)) == (101, 12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(time=0), r"patches\.time is 0; at least 1"),
        (dict(freq_stride=-1), r"patches\.freq_stride is -1; at least 0"),
        (dict(frames=8), r"patches\.frames=8 are less than one patch"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    """A typing error in the config would surface as a shape error deep inside XLA."""
    with pytest.raises(ValueError, match=message):
        PatchConfig(**fields)
