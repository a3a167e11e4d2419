"""The contrastive objective: what its settings and metrics mean. The losses: test_pairs.py."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.objectives.contrastive import caption_digest, contrastive, shared_captions
from tests.objectives import pairs_reference
from tests.quick_jit import quick_jit

B, J = 6, 5
RNG = np.random.default_rng(0)
AUDIO, TEXT = pairs_reference.unit(RNG, B, J), pairs_reference.unit(RNG, B, J)


def info_nce(audio, scale, group=None):
    """Of both directions."""
    return sum(pairs_reference.info_nce(audio, TEXT, scale, group, 0.0))


def forward(audio, text, tokens, bias=None):
    logit_scale = nnx.Param(jnp.log(jnp.float32(7.4)))
    logit_bias = None if bias is None else nnx.Param(jnp.float32(bias))
    return SimpleNamespace(
        audio_embedding=jnp.asarray(audio),
        text_embedding=jnp.asarray(text),
        batch={"text": jnp.asarray(tokens)},
        model=SimpleNamespace(logit_scale=logit_scale, logit_bias=logit_bias),
    )


CONFIG = ConfigDict(
    dict(reduction="sum", max_logit_scale=0.0, ignore_same_caption=False, label_smoothing=0.0)
)
TOKENS = RNG.integers(4, 100, (B, 7))


def test_objective_reports_what_it_says():
    """Curves in TensorBoard would not be what their names promise."""
    loss, metrics = contrastive(forward(AUDIO, TEXT, TOKENS), CONFIG)
    assert loss == pytest.approx(info_nce(AUDIO, 7.4), rel=2e-6)
    assert metrics["contrastive_loss"] == loss
    assert metrics["logit_scale"] == pytest.approx(7.4, rel=1e-6)
    assert metrics["same_caption_share"] == 0
    right = (AUDIO @ TEXT.T).argmax(1) == np.arange(B)
    assert metrics["contrastive_accuracy"] == pytest.approx(right.mean())


def test_several_views_are_averaged():
    """Two masks a clip would be each other's negatives, or go to the caption of the neighbour."""
    other = pairs_reference.unit(RNG, B, J)
    both = np.stack([AUDIO, other], axis=1).reshape(2 * B, J)
    loss, metrics = contrastive(forward(both, TEXT, TOKENS), CONFIG)
    single = [info_nce(view, 7.4) for view in (AUDIO, other)]
    assert loss == pytest.approx(np.mean(single), rel=2e-6)
    assert metrics["contrastive_chance"] == pytest.approx(2 * np.log(B), rel=1e-6)
    right = [(view @ TEXT.T).argmax(1) == np.arange(B) for view in (AUDIO, other)]
    assert metrics["contrastive_accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(("reduction", "factor"), [("sum", 1.0), ("mean", 0.5)])
def test_chance_is_what_a_collapsed_model_gets(reduction, factor):
    """A loss that sits at chance could not be recognised as one."""
    same = np.repeat(pairs_reference.unit(RNG, 1, J), B, axis=0)
    config = ConfigDict({**CONFIG, "reduction": reduction})
    loss, metrics = contrastive(forward(same, same, TOKENS), config)
    assert metrics["contrastive_chance"] == pytest.approx(factor * 2 * np.log(B), rel=1e-6)
    assert loss == pytest.approx(factor * 2 * np.log(B), rel=1e-6)


def test_equal_captions_are_no_negatives_if_asked():
    """Clips with the same caption would be pushed away from it, and from each other."""
    tokens = TOKENS.copy()
    tokens[4] = tokens[1]
    config = ConfigDict({**CONFIG, "ignore_same_caption": True})
    loss, metrics = contrastive(forward(AUDIO, TEXT, tokens), config)
    assert loss == pytest.approx(info_nce(AUDIO, 7.4, [0, 1, 2, 3, 1, 5]), rel=2e-6)
    assert metrics["same_caption_share"] == pytest.approx(2 / B)


def test_clamped_temperature_and_wrong_settings():
    """Without the clamp a CLIP recipe diverges; a typing error must be named."""
    config = ConfigDict({**CONFIG, "max_logit_scale": 5.0})
    loss, metrics = contrastive(forward(AUDIO, TEXT, TOKENS), config)
    assert metrics["logit_scale"] == 5
    assert loss == pytest.approx(info_nce(AUDIO, 5.0), rel=2e-6)
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
    digests = np.asarray(quick_jit(caption_digest)(np.array(rows, np.int32)))
    assert digests[0] == digests[1]
    assert len(set(digests.tolist())) == len(rows) - 1
    assert shared_captions(jnp.asarray(digests)) == pytest.approx(2 / len(rows))
    assert shared_captions(jnp.array([5, 7, 5, 1, 5, 1])) == pytest.approx(5 / 6)


def test_sigmoid_loss():
    """`loss="sigmoid"` would train on another loss, with its bias left out, or without one."""
    config = ConfigDict({**CONFIG, "loss": "sigmoid", "max_logit_scale": 5.0})
    tokens = TOKENS.copy()
    tokens[4] = tokens[1]
    for ignore, group in ((False, None), (True, [0, 1, 2, 3, 1, 5])):
        config.ignore_same_caption = ignore
        loss, metrics = contrastive(forward(AUDIO, TEXT, tokens, bias=-2.0), config)
        want = pairs_reference.sigmoid(AUDIO, TEXT, 5.0, -2.0, group)
        assert loss == pytest.approx(want, rel=2e-6)
    assert metrics["logit_bias"] == -2
    nothing = pairs_reference.sigmoid(AUDIO, TEXT, 0.0, -np.log(B - 1), None)
    assert metrics["contrastive_chance"] == pytest.approx(nothing, rel=1e-6)
    with pytest.raises(UserError, match=r"config\.model\.logit_bias_init"):
        contrastive(forward(AUDIO, TEXT, TOKENS), config)
    config.label_smoothing = 0.1
    with pytest.raises(UserError, match=r"label_smoothing=0\.1 is for loss='info_nce'"):
        contrastive(forward(AUDIO, TEXT, TOKENS, bias=0.0), config)
    with pytest.raises(UserError, match=r"contrastive\.loss is 'siglip'.*sigmoid"):
        contrastive(forward(AUDIO, TEXT, TOKENS), ConfigDict({**CONFIG, "loss": "siglip"}))
