"""The caption loss against float64 NumPy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alm_jax.audio.masking import MaskingConfig
from alm_jax.errors import UserError
from alm_jax.objectives.captioning import (
    caption_loss,
    caption_references,
    caption_rows,
    captioning,
)
from tests.quick_jit import quick_jit

B, L, V = 3, 6, 11
RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((B, L, V)).astype(np.float32)
TOKENS = RNG.integers(0, V, (B, L)).astype(np.int32)
MASK = np.arange(L) < np.array([[6], [4], [2]])


def reference(logits, reduction, smoothing):
    """Loss and accuracy, token by token: position i answers for token i + 1."""
    total, hits, count = 0.0, 0, 0
    for row in range(B):
        for i in range(L - 1):
            if not MASK[row, i + 1]:
                continue
            scores, target = logits[row, i].astype(np.float64), TOKENS[row, i + 1]
            log_p = scores - np.log(np.exp(scores).sum())
            total -= (1 - smoothing) * log_p[target] + smoothing * log_p.mean()
            hits += scores.argmax() == target
            count += 1
    return total / (count if reduction == "tokens" else B * (L - 1)), hits / count


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["tokens", "positions"])
def test_loss_gradient_and_accuracy(reduction, smoothing):
    """Off by one, the decoder learns to repeat its input; padding would be learned as text."""

    def loss(logits):
        fields = dict(reduction=reduction, label_smoothing=smoothing)
        return caption_loss(caption_rows(logits, TOKENS, MASK, **fields))

    (value, accuracy), grad = quick_jit(jax.value_and_grad(loss, has_aux=True))(LOGITS)
    want, hits = reference(LOGITS, reduction, smoothing)
    assert value == pytest.approx(want, rel=2e-6)
    assert accuracy == pytest.approx(hits)
    slope = np.zeros(LOGITS.shape)
    for place in np.ndindex(slope.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = LOGITS.astype(np.float64)
            moved[place] += step
            ends.append(reference(moved, reduction, smoothing)[0])
        slope[place] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(grad, slope, atol=1e-6)


def test_logits_without_knowledge_cost_ln_vocabulary():
    """A caption loss stuck at chance could not be recognised as one."""
    value, _ = caption_loss(caption_rows(jnp.zeros((B, L, V)), TOKENS, MASK))
    assert value == pytest.approx(np.log(V), rel=1e-6)


def test_a_batch_of_empty_captions_is_no_division_by_zero():
    """One batch without a token would turn all parameters into NaN."""
    value, accuracy = caption_loss(caption_rows(LOGITS, TOKENS, np.zeros((B, L), bool)))
    assert (value, accuracy) == (0, 0)


@pytest.mark.parametrize("divisor", [1.0, 15.0])
def test_references_ignore_the_audio(divisor):
    """A decoder that has only learned how frequent words are would be taken for a good one."""
    targets = TOKENS[:, 1:][MASK[:, 1:]]
    frequency = np.bincount(targets, minlength=V) / len(targets)
    want = -np.log(frequency[targets]).sum() / divisor
    uniform, unigram = caption_references(TOKENS, MASK, jnp.asarray(divisor), V)
    assert unigram == pytest.approx(want, rel=1e-6)
    assert uniform == pytest.approx(len(targets) * np.log(V) / divisor, rel=1e-6)


def forward(decoder, causal=True, views=1):
    words = SimpleNamespace(get_value=lambda: np.zeros((V, 1)))
    text = SimpleNamespace(config=SimpleNamespace(causal=causal), words=words)
    return SimpleNamespace(
        model=SimpleNamespace(caption_decoder=decoder, text=text),
        text_hidden="text states",
        audio_hidden="audio states",
        audio_mask="audio mask",
        masking=MaskingConfig(ratio=0.5, views=views),
        batch={"text": TOKENS, "text_mask": MASK},
        key_for=lambda name: f"key of {name}",
    )


CONFIG = ConfigDict(dict(reduction="tokens", label_smoothing=0.0))


def test_objective_reads_the_visible_audio():
    """The decoder would attend to dropped or padding patches."""

    def decoder(*args, key):
        assert args[0] == "text states"
        assert args[1] is MASK
        assert args[2:] == ("audio states", "audio mask")
        assert key == "key of decoder"
        return jnp.asarray(LOGITS)

    loss, metrics = captioning(forward(decoder), CONFIG)
    assert loss == pytest.approx(reference(LOGITS, "tokens", 0.0)[0], rel=2e-6)
    names = {f"captioning_{name}" for name in ("loss", "accuracy", "uniform", "unigram")}
    assert metrics.keys() == names


def test_wrong_settings_are_named():
    """A bidirectional text tower sees the answer: the loss falls to zero and nothing is learned."""
    with pytest.raises(ValueError, match=r"needs model\.text\.causal=True"):
        captioning(forward(lambda *args, key: LOGITS, causal=False), CONFIG)
    with pytest.raises(UserError, match=r"config\.model\.caption_decoder"):
        captioning(forward(None), CONFIG)
    with pytest.raises(UserError, match=r"one view of a clip: set masking\.views=1"):
        captioning(forward(lambda *args, key: LOGITS, views=2), CONFIG)
    with pytest.raises(ValueError, match=r"captioning\.reduction is 'sum'.*positions"):
        caption_rows(LOGITS, TOKENS, MASK, reduction="sum")
