"""Masking: what is split, that it is fair, and that each clip's draw is its own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.audio.masking import MaskingConfig, Noise, example_keys, mask_view, split_view
from alm_jax.audio.patches import Patches
from tests.quick_jit import quick_jit

MOST = MaskingConfig(ratio=0.8)
TWO_D = MaskingConfig("random_2d", time_ratio=0.5, freq_ratio=0.5)
COLUMNS, ROWS = 7, 8
SLOTS = COLUMNS * ROWS
CLIP_COLUMNS = np.array([7, 5, 2, 1], np.int32)  # of four clips of different length


def patches_of(columns):
    """Patches whose one pixel is 1 + their slot, so that a gather shows what it took."""
    slot = np.arange(SLOTS)
    mask = slot // ROWS < np.asarray(columns)[:, None]
    return Patches(
        values=jnp.asarray(np.where(mask, 1 + slot, 0)[..., None], jnp.float32),
        time=jnp.asarray(np.where(mask, slot // ROWS, 0), jnp.int32),
        freq=jnp.asarray(np.where(mask, slot % ROWS, 0), jnp.int32),
        mask=jnp.asarray(mask),
    )


CLIPS = patches_of(CLIP_COLUMNS)
split = quick_jit(mask_view, static_argnames="config")


@functools.cache
def draws(config, count=400):
    """Slots seen and dropped of `count` whole clips, [count, SLOTS] bool each."""
    keys = jax.random.split(jax.random.key(1), count)
    view = split(keys, patches_of(np.full(count, COLUMNS)), config=config)
    return slots_of(view.visible), slots_of(view.dropped)


def slots_of(patches):
    """[B, SLOTS] bool of the slots that are there, checked against their places."""
    value, mask = np.asarray(patches.values)[..., 0], np.asarray(patches.mask)
    np.testing.assert_array_equal(value > 0, mask)
    slot = value.astype(int) - 1
    np.testing.assert_array_equal(np.asarray(patches.time), np.where(mask, slot // ROWS, 0))
    np.testing.assert_array_equal(np.asarray(patches.freq), np.where(mask, slot % ROWS, 0))
    found = np.zeros((len(mask), SLOTS), bool)
    for row in range(len(mask)):
        chosen = slot[row][mask[row]]
        assert (np.diff(chosen) > 0).all(), "not in the clip's own order, or twice"
        found[row, chosen] = True
    return found


def keys(count=4, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("config", [MOST, TWO_D], ids=["random", "2-D"])
def test_visible_and_dropped_are_the_whole_clip(config):
    """A patch in neither set is never learned from; one in both gives the answer away."""
    view = split(keys(), CLIPS, config=config)
    visible, dropped = slots_of(view.visible), slots_of(view.dropped)
    np.testing.assert_array_equal(visible ^ dropped, np.asarray(CLIPS.mask))
    assert visible.any(axis=1).all()


@pytest.mark.parametrize("ratio", [0.8, 0.3])
def test_ratio_counts_the_patches_of_each_clip(ratio):
    """Short clips would be masked by the length of the longest clip of their batch."""
    view = split(keys(), CLIPS, config=MaskingConfig(ratio=ratio))
    # In hundredths, so that the reference has no rounding of its own.
    want = [max(1, int(c) * ROWS * round(100 - 100 * ratio) // 100) for c in CLIP_COLUMNS]
    np.testing.assert_array_equal(view.visible.mask.sum(1), want)
    np.testing.assert_array_equal(view.dropped.mask.sum(1), CLIP_COLUMNS * ROWS - want)


def test_every_patch_is_as_likely_to_be_seen():
    """Training would favour the start of clips or the low frequencies."""
    visible, _ = draws(MaskingConfig(ratio=0.75))
    share = visible.mean(axis=0)
    spread = np.sqrt(0.25 * 0.75 / len(visible))
    assert np.abs(share - 0.25).max() < 4.5 * spread
    # Pairs too: no two neighbours are tied to each other.
    together = (visible[:, :-1] & visible[:, 1:]).mean(axis=0)
    assert np.abs(together - 14 * 13 / (56 * 55)).max() < 4.5 * np.sqrt(0.06 * 0.94 / len(visible))


def test_budget_is_a_random_subset_of_long_clips_only():
    """Cacophony's long clips would lose their end, or short ones some of their patches."""
    config = MaskingConfig(budget=20)
    view = split(keys(), CLIPS, config=config)
    assert view.dropped is None
    assert view.visible.mask.shape == (4, 20)
    visible = slots_of(view.visible)
    np.testing.assert_array_equal(visible.sum(1), np.minimum(CLIP_COLUMNS * ROWS, 20))
    np.testing.assert_array_equal(visible[2:], np.asarray(CLIPS.mask)[2:])
    assert visible[0, SLOTS // 2 :].any()


@pytest.mark.parametrize(("config", "seen"), [(MOST, 6), (TWO_D, 7)], ids=["random", "2-D"])
def test_budget_bounds_visible_and_dropped_together(config, seen):
    """Stage 1 on long clips would run out of memory in the decoder."""
    visible, dropped = draws(dataclasses.replace(config, budget=30))
    assert not (visible & dropped).any()
    assert ((visible | dropped).sum(1) == 30).all()
    assert (visible.sum(1) == seen).all()


@pytest.mark.parametrize("budget", [0, 30])
def test_2d_masking_drops_whole_columns_and_rows(budget):
    """FLAP's 2-D drop would leak pieces of the columns and rows that it says are gone."""
    visible, dropped = draws(dataclasses.replace(TWO_D, budget=budget))
    rows_seen, columns_seen = [], []
    for seen, lost in zip(visible, dropped, strict=True):
        seen, lost = seen.reshape(COLUMNS, ROWS), lost.reshape(COLUMNS, ROWS)
        columns, rows = seen.any(axis=1), seen.any(axis=0)
        assert columns.sum() <= 3
        assert rows.sum() <= 4
        assert not (lost & columns[:, None] & rows).any()
        if not budget:
            assert seen.sum() == 3 * 4
            np.testing.assert_array_equal(seen, columns[:, None] & rows)
            np.testing.assert_array_equal(lost, ~seen)
        columns_seen.append(columns)
        rows_seen.append(rows)
    if not budget:
        for found, share in ((columns_seen, 3 / 7), (rows_seen, 4 / 8)):
            error = np.abs(np.mean(found, axis=0) - share).max()
            assert error < 4.5 * np.sqrt(0.25 / len(visible))


def test_a_draw_belongs_to_its_example():
    """Another number of devices, or another order in the batch, would change the training."""
    ids = np.array([11, 5, 70_000, 2], np.int32)

    @quick_jit
    def views(seed, ids, clips):
        return mask_view(example_keys(jax.random.key(seed), ids), clips, TWO_D)

    def drawn(seed, rows):
        clips = [np.asarray(part)[rows] for part in CLIPS[:4]]
        return [
            np.asarray(part) for part in jax.tree.leaves(views(seed, ids[rows], Patches(*clips)))
        ]

    order = np.array([2, 0, 3, 1])
    whole, moved, alone = drawn(3, np.arange(4)), drawn(3, order), drawn(3, order[:1])
    for in_whole, in_moved, in_alone in zip(whole, moved, alone, strict=True):
        np.testing.assert_array_equal(in_whole[order], in_moved)
        np.testing.assert_array_equal(in_whole[2:3], in_alone)
    other = drawn(4, np.arange(4))
    assert any((a != b).any() for a, b in zip(whole, other, strict=True))


def test_nothing_to_mask_is_no_operation():
    """Contrastive training without masking would pay for a sort and a gather."""
    view = mask_view(keys(), CLIPS, MaskingConfig())
    assert view.visible is CLIPS
    assert view.dropped is None
    assert mask_view(keys(), CLIPS, MaskingConfig(budget=SLOTS)).visible is CLIPS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="block"), r"masking\.kind is 'block'.*random_2d"),
        (dict(ratio=1.0), r"masking\.ratio is 1\.0; it must be in \[0, 1\)"),
        (dict(time_ratio=-0.1), r"masking\.time_ratio is -0\.1"),
    ],
)
def test_wrong_settings_are_named(fields, message):
    """A share that leaves nothing to see would train on padding."""
    with pytest.raises(ValueError, match=message):
        MaskingConfig(**fields)


def test_the_lowest_noise_stays():
    """A published mask could not be drawn again from its noise."""
    rng = np.random.default_rng(0)
    patch, time, freq = (rng.random((4, n)).astype(np.float32) for n in (SLOTS, COLUMNS, ROWS))
    of_noise = quick_jit(split_view, static_argnames="config")
    visible = slots_of(of_noise(Noise(patch), CLIPS, config=MOST).visible)
    for row, columns in enumerate(CLIP_COLUMNS):
        count = max(1, columns * ROWS // 5)
        lowest = np.argsort(patch[row, : columns * ROWS])[:count]
        np.testing.assert_array_equal(np.flatnonzero(visible[row]), np.sort(lowest))
    visible = slots_of(of_noise(Noise(patch, time, freq), CLIPS, config=TWO_D).visible)
    for row, columns in enumerate(CLIP_COLUMNS):
        kept = np.argsort(time[row, :columns])[: max(1, columns // 2)]
        rows = np.argsort(freq[row])[: ROWS // 2]
        want = {t * ROWS + f for t in kept for f in rows}
        assert set(np.flatnonzero(visible[row])) == want


@pytest.mark.parametrize("config", [MOST, TWO_D], ids=["1-D", "2-D"])
def test_views_of_a_clip(config):
    """FLAP's views would be all alike, or of other clips than the captions beside them."""
    keys = jax.random.split(jax.random.key(0), len(CLIP_COLUMNS))
    view = split(keys, CLIPS, config=view_config(config))
    seen = slots_of(view.visible).reshape(len(keys), 3, SLOTS)
    inside = np.asarray(CLIPS.mask)[:, None]
    assert not (seen & ~inside).any()
    assert (seen | slots_of(view.dropped).reshape(seen.shape) == inside).all()
    assert (seen[0, 0] != seen[0, 1]).any() and (seen[0, 1] != seen[0, 2]).any()
    # A clip's views are its own, wherever it is in the batch.
    moved = split(keys[::-1], jax.tree.map(lambda x: x[::-1], CLIPS), config=view_config(config))
    again = slots_of(moved.visible).reshape(seen.shape)[::-1]
    np.testing.assert_array_equal(again, seen)


def view_config(config):
    return dataclasses.replace(config, views=3)


def test_views_that_would_be_alike_are_refused():
    """Twice the work for the same view."""
    with pytest.raises(ValueError, match=r"masking\.views is 2.*dropped"):
        MaskingConfig(views=2)
