"""The optimiser: schedule points, what decays, rates per parameter, and AdamW in float64."""

import os
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.checkpoints import flat_names
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.optim import (
    NOT_DECAYED,
    decay_mask,
    layer_rates,
    make_optimizer,
    multipliers,
    schedule,
)
from alm_jax.train_state import model_graph
from tests.quick_jit import quick_jit

GOLDEN = Path(__file__).parent / "golden" / "not_decayed.txt"


def optim(**changed):
    fields = load_config("quickstart").optim.to_dict()
    return ConfigDict(fields | changed)


@pytest.mark.parametrize(
    ("name", "points"),
    [
        # (step, share of lr): 10 steps of warm-up, then 40 of decay to a tenth.
        ("cosine", [(0, 0), (5, 0.5), (10, 1), (20, 0.1 + 0.9 * 0.853553), (30, 0.55), (50, 0.1)]),
        ("linear", [(0, 0), (9, 0.9), (10, 1), (20, 0.775), (30, 0.55), (50, 0.1), (60, 0.1)]),
        ("constant", [(0, 0), (1, 0.1), (10, 1), (30, 1), (50, 1)]),
    ],
)
def test_schedule_points(name, points):
    """A recipe's learning rate would peak or end elsewhere than its paper says."""
    rate = schedule(optim(lr=0.02, schedule=name, warmup_steps=10, end_factor=0.1), 50)
    for step, share in points:
        assert rate(step) == pytest.approx(0.02 * share, rel=1e-5, abs=1e-9), step


def test_schedule_without_warmup_starts_at_its_peak():
    """Fine-tuning without warm-up would lose its first step."""
    assert schedule(optim(lr=0.02, warmup_steps=0), 50)(0) == pytest.approx(0.02)


def test_wrong_schedules_are_named():
    """A shortened run that is all warm-up ends at its peak rate, and nobody sees why."""
    with pytest.raises(UserError, match=r"optim\.schedule is 'rsqrt'.*cosine"):
        schedule(optim(schedule="rsqrt"), 50)
    with pytest.raises(
        UserError, match=r"optim\.warmup_steps=50 leaves nothing of train\.steps=50"
    ):
        schedule(optim(warmup_steps=50), 50)


def all_names():
    """Name -> shape of every parameter that some shipped config has."""
    found = {}
    for spec in ("quickstart:mae", "quickstart", "cacophony_mae", "cacophony"):
        config = load_config(spec)
        params = nnx.to_pure_dict(model_graph(config, 1000)[1])
        found |= {name: leaf.shape for name, leaf in flat_names(params).items()}
    return found


def test_weight_decay_covers_exactly_the_matrices():
    """Decayed norms and biases, or matrices that are not, change every published recipe."""
    found = all_names()
    plain = sorted(name for name in found if NOT_DECAYED.search(name))
    for name, shape in found.items():
        own = shape[1:] if ".blocks." in name else shape  # without the stacked layers
        matrix = name.endswith("kernel")
        assert matrix == (len(own) == 2 and not name.endswith(TABLES)), name
        assert (name in plain) != matrix, name
    text = "\n".join(plain) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), (
        "other parameters escape weight decay than before; if this is meant, run this test with "
        "UPDATE_GOLDEN=1 and look at the difference"
    )


TABLES = ("words", "positions", "positions.freq", "token_type", "query")


def tree():
    rng = np.random.default_rng(0)
    shapes = {
        "audio": {"embed": {"kernel": (3, 4), "bias": (4,)}, "norm": {"scale": (4,)}},
        "text": {"embed": {"kernel": (2, 4)}},
        "logit_scale": (),
    }
    return jax.tree.map(
        lambda shape: np.asarray(rng.standard_normal(shape), np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


RULES = ((r"^audio\.embed", 0.5), (r"^audio", 0.1), ("logit_scale", 0.0))


def test_rates_per_parameter():
    """A frozen or slowed tower would train at full speed; the first rule that matches counts."""
    factors = flat_names(multipliers(tree(), RULES))
    assert factors == {
        "audio.embed.kernel": 0.5,
        "audio.embed.bias": 0.5,
        "audio.norm.scale": 0.1,
        "text.embed.kernel": 1.0,
        "logit_scale": 0.0,
    }


def test_rule_that_matches_nothing_is_an_error():
    """A typing error in a rule would leave the tower unfrozen for the whole run."""
    with pytest.raises(UserError, match=r"\['\^adio'\] match no parameter; parts are \['audio'"):
        multipliers(tree(), (("^audio", 0.1), ("^adio", 0.5)))


@pytest.mark.parametrize("clip_norm", [0.0, 0.7], ids=["no clipping", "clipped"])
def test_updates_are_adamw(clip_norm):
    """Decay coupled to Adam, or clipping after it, is another optimiser than the recipes name."""
    config = optim(
        lr=0.02,
        schedule="linear",
        warmup_steps=2,
        weight_decay=0.3,
        clip_norm=clip_norm,
        b1=0.8,
        b2=0.9,
        lr_multipliers=RULES,
    )
    params = tree()
    optimizer = make_optimizer(config, 10, params)
    rates = [0.0, 0.01, 0.02, 0.02 * 7 / 8]
    factors = flat_names(multipliers(params, RULES))
    want = {name: np.float64(value) for name, value in flat_names(params).items()}
    mean, square = (dict.fromkeys(want, 0.0) for _ in range(2))
    rng = np.random.default_rng(1)

    @quick_jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for number, rate in enumerate(rates, 1):
        grads = jax.tree.map(lambda p: np.float32(rng.standard_normal(p.shape)), params)
        params, state = step(params, state, grads)
        grads = flat_names(grads)
        norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in grads.values()))
        for name, grad in grads.items():
            grad = np.float64(grad) * (clip_norm / norm if clip_norm and norm > clip_norm else 1.0)
            mean[name] = 0.8 * mean[name] + 0.2 * grad
            square[name] = 0.9 * square[name] + 0.1 * grad**2
            update = mean[name] / (1 - 0.8**number)
            update = update / (np.sqrt(square[name] / (1 - 0.9**number)) + config.eps)
            if name.endswith("kernel"):
                update = update + 0.3 * want[name]
            want[name] = want[name] - factors[name] * rate * update
    for name, value in flat_names(params).items():
        np.testing.assert_allclose(value, want[name], rtol=2e-5, atol=2e-6, err_msg=name)


def newton_schulz(matrix):
    """Five steps of the quintic iteration of Muon's authors, in float64."""
    x = np.float64(matrix)
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def test_first_muon_update():
    """Layers that are orthogonalised as one matrix, or tables that are, are no longer Muon."""
    rng = np.random.default_rng(0)
    shapes = {
        "audio": {
            "embed": {"kernel": (3, 4)},
            "transformer": {"blocks": {"mlp": {"up": {"kernel": (2, 3, 5), "bias": (2, 5)}}}},
        },
        "text": {"words": (6, 4)},
        "text_proj": {"kernel": (4, 3)},
    }
    params, grads = (
        jax.tree.map(
            lambda shape: np.asarray(rng.standard_normal(shape), np.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for _ in range(2)
    )
    config = optim(name="muon", lr=0.02, warmup_steps=0, weight_decay=0.3, clip_norm=0.0)
    optimizer = make_optimizer(config, 10, params)
    updates = quick_jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(grads, params)
    params, grads = flat_names(params), flat_names(grads)
    for name, update in flat_names(updates).items():
        grad = np.float64(grads[name])
        want = grad / (np.abs(grad) + config.eps)  # Adam's first step
        if name.startswith(("audio.transformer", "text_proj")) and name.endswith("kernel"):
            layers = grad[None] if grad.ndim == 2 else grad
            scale = 0.2 * np.sqrt(max(grad.shape[-2:]))
            want = np.stack([newton_schulz(layer) for layer in layers]).reshape(grad.shape) * scale
        if name.endswith("kernel"):
            want = want + 0.3 * params[name]
        np.testing.assert_allclose(update, -0.02 * want, rtol=1e-4, atol=1e-6, err_msg=name)


def test_unknown_optimizer_is_named():
    """A typing error would train with another optimiser than the config says."""
    with pytest.raises(UserError, match=r"optim\.name is 'moun'; it must be one of"):
        make_optimizer(optim(name="moun"), 10, tree())


def stacked():
    """A tower of three layers with something above it."""
    audio = {
        "embed": {"kernel": np.ones((2, 4), np.float32)},
        "class_token": np.ones(4, np.float32),
        "transformer": {"blocks": {"mlp": {"up": {"kernel": np.ones((3, 4, 5), np.float32)}}}},
        "norm": {"scale": np.ones(4, np.float32)},
    }
    return {"audio": audio, "classifier": {"predict": {"bias": np.ones(6, np.float32)}}}


def test_rates_fall_towards_the_input():
    """Fine-tuning would move the first layers as far as the last; frozen parts would move again."""
    rates = flat_names(layer_rates(stacked(), 0.5))
    np.testing.assert_array_equal(
        np.squeeze(rates.pop("audio.transformer.blocks.mlp.up.kernel")), [0.125, 0.25, 0.5]
    )
    assert rates == {
        "audio.embed.kernel": 0.0625,
        "audio.class_token": 0.0625,
        "audio.norm.scale": 1.0,
        "classifier.predict.bias": 1.0,
    }
    params = stacked()
    config = optim(
        name="adamw",
        lr=1.0,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        clip_norm=0.0,
        layer_decay=0.5,
        lr_multipliers=(("class_token", 0.0),),
    )
    optimizer = make_optimizer(config, 10, params)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    updates = flat_names(updates)
    # Adam's first step is one learning rate long.
    np.testing.assert_allclose(
        -updates["audio.transformer.blocks.mlp.up.kernel"][:, 0, 0], [0.125, 0.25, 0.5], rtol=1e-5
    )
    assert not updates["audio.class_token"].any()


def test_layer_decay_needs_layers():
    """A tower of another kind would train without the decay that its recipe names."""
    with pytest.raises(UserError, match=r"optim\.layer_decay=0\.5 needs an audio tower of one"):
        layer_rates(tree(), 0.5)


def test_more_parameters_without_decay():
    """A recipe that spares the class token would decay it, or a typing error spare nothing."""
    mask = flat_names(decay_mask(stacked(), ("class_token$",)))
    assert not mask["audio.class_token"]
    assert flat_names(decay_mask(stacked()))["audio.class_token"]
    assert mask["audio.embed.kernel"]
    with pytest.raises(UserError, match=r"optim\.not_decayed: \['class_tokn'\] match no"):
        decay_mask(stacked(), ("class_tokn",))
