"""InfoNCE against float64 NumPy, its gradient against finite differences."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.objectives.contrastive import (
    caption_digest,
    contrastive,
    info_nce,
    same_caption,
)
from tests.quick_jit import quick_jit

B, J = 6, 5
RNG = np.random.default_rng(0)


def unit(*shape):
    x = RNG.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


AUDIO, TEXT = unit(B, J), unit(B, J)
IGNORE = np.zeros((B, B), bool)
IGNORE[0, 3] = IGNORE[3, 0] = IGNORE[1, 2] = IGNORE[2, 1] = IGNORE[0, 5] = True
CASES = {
    "plain": (None, 0.0),
    "ignore": (IGNORE, 0.0),
    "smoothing": (None, 0.2),
    "both": (IGNORE, 0.2),
}


def reference(audio, text, scale, ignore, smoothing):
    """Both cross-entropies, row by row over the pairs that count."""
    logits = float(scale) * audio.astype(np.float64) @ text.T.astype(np.float64)
    ignore = np.zeros((B, B), bool) if ignore is None else ignore
    directions = []
    for scores, gone in ((logits, ignore), (logits.T, ignore.T)):
        losses = []
        for row in range(B):
            counted = ~gone[row]
            log_p = scores[row] - np.log(np.exp(scores[row][counted]).sum())
            target = smoothing / counted.sum() * counted
            target[row] += 1 - smoothing
            losses.append(-np.sum(target[counted] * log_p[counted]))
        directions.append(np.mean(losses))
    return directions


@pytest.mark.parametrize(("ignore", "smoothing"), CASES.values(), ids=CASES.keys())
def test_loss_and_gradient(ignore, smoothing):
    """Training would minimise something else; NaN gradients would come from ignored pairs."""

    def loss(audio, text, scale):
        directions = info_nce(audio, text, scale, ignore=ignore, label_smoothing=smoothing)
        return directions[0] + 0.7 * directions[1], directions

    def float64_loss(arguments):
        a, b = reference(*arguments, ignore, smoothing)
        return a + 0.7 * b

    arguments = [AUDIO, TEXT, np.float32(7.4)]
    run = quick_jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, directions), grads = run(*arguments)
    np.testing.assert_allclose(directions, reference(*arguments, ignore, smoothing), rtol=2e-6)
    for number, grad in enumerate(grads):
        slope = np.zeros(np.shape(grad))
        for place in np.ndindex(slope.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [np.array(x, np.float64) for x in arguments]
                moved[number][place] += step
                ends.append(float64_loss(moved))
            slope[place] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(grad, slope, atol=2e-6)


def forward(audio, text, tokens):
    logit_scale = nnx.Param(jnp.log(jnp.float32(7.4)))
    return SimpleNamespace(
        audio_embedding=jnp.asarray(audio),
        text_embedding=jnp.asarray(text),
        batch={"text": jnp.asarray(tokens)},
        model=SimpleNamespace(logit_scale=logit_scale),
    )


CONFIG = ConfigDict(
    dict(reduction="sum", max_logit_scale=0.0, ignore_same_caption=False, label_smoothing=0.0)
)
TOKENS = RNG.integers(4, 100, (B, 7))


def test_objective_reports_what_it_says():
    """Curves in TensorBoard would not be what their names promise."""
    loss, metrics = contrastive(forward(AUDIO, TEXT, TOKENS), CONFIG)
    assert loss == pytest.approx(sum(reference(AUDIO, TEXT, 7.4, None, 0.0)), rel=2e-6)
    assert metrics["contrastive_loss"] == loss
    assert metrics["logit_scale"] == pytest.approx(7.4, rel=1e-6)
    assert metrics["same_caption_share"] == 0
    right = (AUDIO @ TEXT.T).argmax(1) == np.arange(B)
    assert metrics["contrastive_accuracy"] == pytest.approx(right.mean())


def test_several_views_are_averaged():
    """Two masks a clip would be each other's negatives, or go to the caption of the neighbour."""
    other = unit(B, J)
    both = np.stack([AUDIO, other], axis=1).reshape(2 * B, J)
    loss, metrics = contrastive(forward(both, TEXT, TOKENS), CONFIG)
    single = [sum(reference(view, TEXT, 7.4, None, 0.0)) for view in (AUDIO, other)]
    assert loss == pytest.approx(np.mean(single), rel=2e-6)
    assert metrics["contrastive_chance"] == pytest.approx(2 * np.log(B), rel=1e-6)
    right = [(view @ TEXT.T).argmax(1) == np.arange(B) for view in (AUDIO, other)]
    assert metrics["contrastive_accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(("reduction", "factor"), [("sum", 1.0), ("mean", 0.5)])
def test_chance_is_what_a_collapsed_model_gets(reduction, factor):
    """A loss that sits at chance could not be recognised as one."""
    same = np.repeat(unit(1, J), B, axis=0)
    config = ConfigDict({**CONFIG, "reduction": reduction})
    loss, metrics = contrastive(forward(same, same, TOKENS), config)
    assert metrics["contrastive_chance"] == pytest.approx(factor * 2 * np.log(B), rel=1e-6)
    assert loss == pytest.approx(factor * 2 * np.log(B), rel=1e-6)


def test_equal_captions_are_no_negatives_if_asked():
    """Clips with the same caption would be pushed away from it, and from each other."""
    tokens = TOKENS.copy()
    tokens[4] = tokens[1]
    same = np.zeros((B, B), bool)
    same[1, 4] = same[4, 1] = True
    config = ConfigDict({**CONFIG, "ignore_same_caption": True})
    loss, metrics = contrastive(forward(AUDIO, TEXT, tokens), config)
    assert loss == pytest.approx(sum(reference(AUDIO, TEXT, 7.4, same, 0.0)), rel=2e-6)
    assert metrics["same_caption_share"] == pytest.approx(2 / B)


def test_clamped_temperature_and_wrong_settings():
    """Without the clamp a CLIP recipe diverges; a typing error must be named."""
    config = ConfigDict({**CONFIG, "max_logit_scale": 5.0})
    loss, metrics = contrastive(forward(AUDIO, TEXT, TOKENS), config)
    assert metrics["logit_scale"] == 5
    assert loss == pytest.approx(sum(reference(AUDIO, TEXT, 5.0, None, 0.0)), rel=2e-6)
    with pytest.raises(ValueError, match=r"contrastive\.reduction is 'max'.*mean"):
        contrastive(forward(AUDIO, TEXT, TOKENS), ConfigDict({**CONFIG, "reduction": "max"}))


def test_captions_are_the_same_only_if_every_token_is():
    """A collision of the hash would take away a true negative (or several, systematically)."""
    length = 32
    base = RNG.integers(4, 32_000, length)
    rows = [base, base]
    # One token changed by each power of two, at each place: what a weak hash would not see.
    for place in range(length):
        for power in range(15):
            changed = base.copy()
            changed[place] ^= 1 << power
            rows.append(changed)
    rows += [np.roll(base, 1), np.where(np.arange(length) < 9, base, 0), base[::-1]]
    found = np.array(same_caption(quick_jit(caption_digest)(np.array(rows, np.int32))))
    assert found[0, 1]
    assert found[1, 0]
    assert found.sum() == 2
