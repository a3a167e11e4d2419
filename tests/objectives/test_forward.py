"""What the objectives share: drawn per example in training, drawn not at all in evaluation."""

import jax
import numpy as np
import pytest

from alm_jax.config import load_config
from alm_jax.objectives.forward import Forward
from tests.quick_jit import quick_jit

B, S = 4, 8000
CONFIG = load_config(
    "quickstart:mae",
    [
        "augment.gain_db=6.0",
        "augment.time_stretch=0.2",
        "augment.time_roll=1.0",
        "masking.budget=40",
    ],
)
RNG = np.random.default_rng(0)
LENGTH = np.array([8000, 7000, 3000, 700], np.int32)
AUDIO = (RNG.standard_normal((B, S)) * 3000 * (np.arange(S) < LENGTH[:, None])).astype(np.int16)
BATCH = {
    "audio": AUDIO,
    "audio_length": LENGTH,
    "example_id": np.array([17, 3, 40_000, 8], np.int32),
}


@quick_jit
def view(batch, seed):
    return Forward(None, batch, CONFIG, jax.random.key(seed)).view


@pytest.fixture(scope="module")
def drawn():
    return jax.tree.map(np.asarray, view(BATCH, 0))


def test_augmentation_and_mask_belong_to_the_example(drawn):
    """Results would depend on the order in the batch, so on the number of hosts."""
    order = np.array([2, 0, 3, 1])
    moved = view({name: value[order] for name, value in BATCH.items()}, 0)
    for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(moved), strict=True):
        np.testing.assert_array_equal(a[order], b)


def test_every_step_draws_anew(drawn):
    """Every epoch would show the same patches of each clip with the same augmentation."""
    other = view(BATCH, 1)
    assert (np.asarray(other.visible.time) != drawn.visible.time).any(axis=1)[:3].all()
    assert other.visible.mask.sum() != 0


def test_evaluation_draws_nothing():
    """Validation losses and embeddings would be noisy."""

    @quick_jit
    def evaluated(batch):
        forward = Forward(None, batch, CONFIG, None)
        assert forward.view.dropped is None
        return forward.view.visible

    first = evaluated(BATCH)
    # 4 frames of 10 ms a patch, all of them: the budget is for training only.
    np.testing.assert_array_equal(first.mask.sum(1), -(-LENGTH // 640))
    forward = Forward(None, BATCH, CONFIG, None)
    assert forward.key_for("audio") is None
    with pytest.raises(ValueError, match="there is no key"):
        forward.example_keys("masking")


def test_uses_of_a_step_have_keys_of_their_own():
    """Dropout of two towers, or mask and augmentation, would be the same draw."""
    forward = Forward(None, BATCH, CONFIG, jax.random.key(5))
    names = ("waveform", "spectrogram", "masking", "audio", "text", "decoder", "mae")
    keys = {tuple(jax.random.key_data(forward.key_for(name)).tolist()) for name in names}
    assert len(keys) == len(names)
