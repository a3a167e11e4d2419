"""Views of long clips against the outputs of Hugging Face's ClapFeatureExtractor and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.audio.fusion import excerpt_starts, fusion_views, squeeze

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("total", [12, 13, 14, 31, 100])
def test_excerpts_lie_in_their_thirds(total):
    """An excerpt outside its third would show the model the same sound three times, or no sound."""
    chunk = 12
    parts = np.array_split(np.arange(total - chunk + 1), 3)
    keys = jax.random.split(jax.random.key(0), 300)
    frames = jnp.full((300,), total)
    drawn = np.asarray(excerpt_starts(frames, chunk, keys))
    middle = np.asarray(excerpt_starts(frames[:1], chunk, None))[0]
    for column, part in enumerate(parts):
        allowed = part if len(part) else np.array([0])
        assert set(drawn[:, column]) <= set(allowed)
        assert middle[column] == allowed[(len(allowed) - 1) // 2]
        if 1 < len(part) < 10:
            assert set(drawn[:, column]) == set(part)


@pytest.mark.parametrize("frames", [20, 21, 37, 60])
def test_squeezed_clip_is_torchs(frames):
    """The whole clip as the released fused models saw it; a shifted grid moves every event."""
    mel = RNG.standard_normal((1, 60, 5)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(mel[:, None, :frames]), size=(20, 5), mode="bilinear", align_corners=False
    )[:, 0]
    ours = squeeze(jnp.asarray(mel), jnp.asarray([frames]), 20)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)  # float32 places in a noisy signal


def test_views():
    """A clip that fits must not depend on the clips beside it, nor on how far it was padded."""
    mel = RNG.standard_normal((3, 40, 4)).astype(np.float32)
    frames = jnp.asarray([10, 9, 40])
    views = fusion_views(jnp.asarray(mel), frames, 10)
    assert views.longer.tolist() == [False, False, True]
    assert views.frames.tolist() == [10, 9, 10]
    for view in range(4):
        np.testing.assert_array_equal(views.values[0, view], mel[0, :10])
    starts = excerpt_starts(frames, 10, None)[2]
    for view, start in enumerate(starts.tolist()):
        np.testing.assert_array_equal(views.values[2, view + 1], mel[2, start : start + 10])
    short = fusion_views(jnp.asarray(mel[:2, :10]), frames[:2], 10)
    np.testing.assert_array_equal(short.values, views.values[:2])
