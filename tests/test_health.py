"""A run that learns nothing says so, one that learns does not."""

import logging

import numpy as np
import pytest

from alm_jax.config import load_config
from alm_jax.health import Health
from alm_jax.objectives.spread import spread

CHANCE = 11.09


@pytest.fixture
def said(caplog):
    logging.getLogger("alm_jax").propagate = True
    caplog.set_level(logging.INFO, "alm_jax")
    return lambda: [record.getMessage() for record in caplog.records]


def run(losses, cosine=0.2):
    health = Health(
        load_config("quickstart", ["train.health_every_steps=50", "optim.warmup_steps=40"]), 0
    )
    for number, loss in enumerate(losses):
        values = {
            "loss": loss,
            "contrastive_loss": loss,
            "contrastive_chance": CHANCE,
            "logit_scale": 7.39,
            "audio_cosine": cosine,
            "audio_rank": 20.0,
            "text_cosine": 0.1,
            "text_rank": 30.0,
        }
        health.see(1 + 10 * number, {f"train/{name}": v for name, v in values.items()})


def test_first_line_says_what_chance_is(said):
    """Who sees a loss of 11.1 does not know whether that is good."""
    run([11.3])
    assert said() == [
        "step 1: contrastive_loss 11.300 (chance: 11.090); logit scale 7.39; mean cosine of audio "
        "embeddings 0.2; their effective rank 20; mean cosine of text embeddings 0.1; their "
        "effective rank 30"
    ]


def test_flat_loss_is_reported_once_a_while(said):
    """A run of days would be looked at when it is over."""
    rng = np.random.default_rng(0)
    run(CHANCE + rng.normal(0, 0.05, 16))
    warnings = [line for line in said() if line.startswith("warning")]
    # Steps 1 to 51 are of the warm-up.
    assert [line.partition(": ")[2].partition(":")[0] for line in warnings] == [
        "steps 52 to 101",
        "steps 102 to 151",
    ]
    assert all("is where chance puts it (11.090). Check whether captions" in w for w in warnings)


def test_learning_run_and_one_bad_number_are_no_reason_to_warn(said):
    """Warnings that come always are read never."""
    run([*np.linspace(CHANCE, 6, 15), np.nan])
    assert not [line for line in said() if line.startswith("warning")]


def test_collapse_is_reported(said):
    """All clips at one point: the loss may still fall a little on other losses' account."""
    run(np.linspace(CHANCE, 6, 16), cosine=0.995)
    warnings = [line for line in said() if line.startswith("warning")]
    assert len(warnings) == 2
    assert "audio embeddings are nearly all the same (mean cosine 0.995" in warnings[0]


def test_spread_is_that_of_all_pairs():
    """A collapse would not show, or be announced where there is none."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 7)) + 0.5
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine, rank = spread(x.astype(np.float32))
    pairs = (x @ x.T)[~np.eye(12, dtype=bool)]
    values = np.linalg.eigvalsh(np.cov(x.T))
    assert cosine == pytest.approx(pairs.mean(), abs=1e-6)
    assert rank == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-5)
    same = np.repeat(x[:1], 12, axis=0).astype(np.float32)
    assert spread(same)[0] == pytest.approx(1, abs=1e-6)
    assert spread(same)[1] < 1.5
    assert spread(same[:1])[0] == 1
