"""Spectrograms as pictures against PyTorch's interpolation and reshapes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.audio.picture import fold, picture_patches, stretch

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("frames", [2, 33, 61, 64])
def test_stretch_is_torchs(frames):
    """The tower would see every event at another place than the released checkpoints do."""
    mel = RNG.standard_normal((2, 1, 70, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(mel[:, :, :frames]), (64, 3), mode="bicubic", align_corners=True
    )
    ours = stretch(jnp.asarray(mel), jnp.full((2, 1), frames), 64)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)  # float32 places in a noisy signal


def test_fold():
    """Parts of time one below the other; another order scrambles sound and frequency."""
    mel = RNG.standard_normal((1, 2, 32, 4)).astype(np.float32)
    picture = np.asarray(fold(jnp.asarray(mel), 4))
    assert picture.shape == (1, 2, 16, 8)
    for part in range(4):
        for band in range(4):
            want = mel[0, 1, 8 * part : 8 * part + 8, band]
            np.testing.assert_array_equal(picture[0, 1, 4 * part + band], want)


def test_patches_are_a_convolutions():
    """Imported kernels would meet other pixels than they were trained on."""
    picture = RNG.standard_normal((2, 16, 16)).astype(np.float32)
    kernel = RNG.standard_normal((5, 1, 4, 6)).astype(np.float32)
    theirs = torch.nn.functional.conv2d(
        torch.tensor(picture[:, None]), torch.tensor(kernel), stride=(4, 6)
    )
    ours = picture_patches(jnp.asarray(picture), 4, 6) @ kernel.reshape(5, -1).T
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-5)
