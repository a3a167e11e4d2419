"""One step: the weighted loss, what it is a function of, and the moving average."""

import jax
import numpy as np
import pytest

from alm_jax.checkpoints import flat_names
from alm_jax.errors import UserError
from alm_jax.guards import part_names
from alm_jax.parallel.mesh import make_mesh
from alm_jax.train_state import TrainState, make_setup
from alm_jax.train_step import make_eval_step, make_train_step, total_loss
from tests.quick_jit import quick_jit
from tests.random_params import draw_like
from tests.small_configs import stage2

B, S, L, V = 8, 16_000, 32, 50
CONFIG = stage2(
    "objectives.contrastive.weight=0.5",
    "objectives.captioning.weight=3.0",
    "model.audio.dropout=0.1",
    "optim.ema_decay=0.25",
    "optim.warmup_steps=0",
    "train.steps=10",
)
RNG = np.random.default_rng(0)
LENGTH = RNG.integers(3000, S, B).astype(np.int32)
BATCH = {
    "audio": (RNG.standard_normal((B, S)) * 3000 * (np.arange(S) < LENGTH[:, None])).astype(
        np.int16
    ),
    "audio_length": LENGTH,
    "text": RNG.integers(4, V, (B, L)).astype(np.int32),
    "text_mask": np.arange(L) < RNG.integers(3, L, (B, 1)),
    "example_id": np.arange(B, dtype=np.int32),
}


@pytest.fixture(scope="module")
def run():
    """The compiled step, and the state it starts from."""
    setup = make_setup(CONFIG, V, make_mesh(CONFIG.mesh, jax.devices()[:1]))
    params = draw_like(setup.shapes.params)
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), setup.shapes.opt_state)
    state = TrainState(np.zeros((), np.int32), params, opt_state, params)
    return quick_jit(make_train_step(CONFIG, setup)), state


@pytest.fixture(scope="module")
def first(run):
    step, state = run
    return step(state, BATCH)


def test_loss_is_the_weighted_sum(first):
    """A weight in the config would do nothing (as in the official Cacophony code)."""
    metrics = first[1]
    want = 0.5 * metrics["contrastive_loss"] + 3 * metrics["captioning_loss"]
    assert metrics["loss"] == pytest.approx(float(want), rel=1e-6)


def test_step_counts_and_measures_itself(run, first):
    """Curves of the update's size would be of something else."""
    before, (after, metrics) = run[1], first
    assert after.step == 1
    moved = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), after.params, before.params)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(moved)))
    assert metrics["update_norm"] == pytest.approx(norm, rel=1e-3)
    assert metrics["grad_norm"] > 0
    still = [name for name, leaf in flat_names(moved).items() if not leaf.any()]
    # A softmax does not see what all its logits share.
    assert all(name.endswith("key.bias") for name in still), still


def test_step_is_a_function_of_state_and_batch(run, first):
    """A resumed run would not repeat what it would have done; an epoch would repeat its draws."""
    step, state = run
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(step(state, BATCH)), strict=True):
        np.testing.assert_array_equal(a, b)
    later = step(state.replace(step=np.int32(1)), BATCH)[1]
    assert later["loss"] != first[1]["loss"]


def test_step_that_is_not_finite_changes_nothing(run):
    """One bad batch would turn every parameter, and the checkpoints after it, into NaN."""
    step, state = run
    params = {**state.params, "logit_scale": np.float32(np.inf)}
    before = state.replace(params=params)
    after, metrics = step(before, BATCH)
    assert after.step == 1
    assert not np.isfinite(metrics["loss"])
    parts = part_names(params)
    found = [name for n, name in enumerate(parts) if int(metrics["nonfinite"]) >> n & 1]
    assert "the loss" in found
    assert "the gradients of audio" in found
    for a, b in zip(
        jax.tree.leaves(after.replace(step=0)), jax.tree.leaves(before.replace(step=0)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert step(state, BATCH)[1]["nonfinite"] == 0


def test_average_follows_the_parameters(run, first):
    """Evaluation and export would use parameters that nobody trained."""
    step, state = run
    average = {name: np.float64(leaf) for name, leaf in flat_names(state.params).items()}
    state = first[0]
    for number, decay in enumerate((0.1, 2 / 11, 0.25)):  # min(0.25, (1 + step) / (10 + step))
        for name, leaf in flat_names(state.params).items():
            average[name] = decay * average[name] + (1 - decay) * np.float64(leaf)
        assert state.step == number + 1
        for name, leaf in flat_names(state.ema).items():
            np.testing.assert_allclose(leaf, average[name], rtol=1e-5, atol=1e-6, err_msg=name)
        assert state.eval_params is state.ema
        state, _ = step(state, BATCH)


def test_unknown_and_missing_objectives_are_named():
    """A config with a typing error would train on nothing at all."""
    config = CONFIG.copy_and_resolve_references().unlock()
    config.objectives.matching = config.objectives.contrastive
    del config.objectives.contrastive, config.objectives.captioning
    with pytest.raises(UserError, match=r"objectives\.matching is unknown.*reconstruction"):
        total_loss(None, config)
    del config.objectives.matching
    with pytest.raises(UserError, match=r"objectives is empty.*contrastive"):
        total_loss(None, config)


def test_validation_losses_mask_and_nothing_else(run):
    """The curve of held-out clips would move with dropout and augmentation, not with the model."""
    noisy = CONFIG.copy_and_resolve_references().unlock()
    noisy.masking.budget = 4
    noisy.augment.gain_db = 12.0
    noisy.augment.frequency_scale = 0.2
    quiet = noisy.copy_and_resolve_references().unlock()
    quiet.model.audio.dropout = quiet.augment.gain_db = quiet.augment.frequency_scale = 0.0
    unmasked = quiet.copy_and_resolve_references().unlock()
    unmasked.masking.budget = 0
    losses = []
    for config in (noisy, quiet, unmasked):
        setup = make_setup(config, V, make_mesh(config.mesh, jax.devices()[:1]))
        losses.append(float(quick_jit(make_eval_step(config, setup))(run[1].params, BATCH)["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert abs(losses[2] / losses[1] - 1) > 1e-4
