"""Steps that are not finite, in the train loop on real sound: reported, left out, never saved."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.checkpoints import Checkpoints
from alm_jax.errors import UserError
from alm_jax.guards import Guard
from alm_jax.metrics import read_metrics
from alm_jax.objectives import OBJECTIVES, Objective
from alm_jax.train import train, workdir_tokenizer
from input_pipeline.loader import train_loader
from input_pipeline.sources import open_source
from tests.small_configs import stage1

STEPS, BAD = 6, 4


@pytest.fixture(scope="module")
def config(tiny_dataset):
    return stage1(
        f"data.dir={tiny_dataset}",
        "data.train_split=train[:64]",  # no clip twice within the run
        "data.eval_split=",
        f"train.steps={STEPS}",
        "train.save_every_steps=1",
        "train.log_every_steps=1",
        "train.keep=9",
        "model.audio.width=16",
        "model.mae_decoder.width=16",
        "model.audio.depth=1",
    )


@pytest.fixture(scope="module")
def batch_ids(config, tmp_path_factory):
    """Examples of the batch that goes wrong."""
    tokenizer = workdir_tokenizer(config, tmp_path_factory.mktemp("tokenizer"))
    with train_loader(config.data, tokenizer, seed=config.seed) as loader:
        batches = [next(loader)["example_id"] for _ in range(STEPS)]
    assert len(np.unique(np.concatenate(batches))) == STEPS * len(batches[0])
    return batches[BAD - 1]


@pytest.fixture
def poisoned(monkeypatch, batch_ids):
    """One clip whose loss is NaN."""
    sound = OBJECTIVES["reconstruction"]

    def rows(forward, config):
        found = sound.rows(forward, config)
        wrong = forward.batch["example_id"] == batch_ids[3]
        return found | {"error": found["error"] * jnp.where(wrong, jnp.nan, 1.0)}

    monkeypatch.setitem(OBJECTIVES, "reconstruction", Objective(rows, sound.loss))


def changed(config, **fields):
    config = config.copy_and_resolve_references().unlock()
    config.train.update(fields)
    return config


def saved_states(workdir):
    """Parameters by step."""
    saves = Checkpoints(workdir, read_only=True)
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    found = {step: jax.tree.leaves(saves.restore_params(step)[0]) for step in steps}
    saves.close()
    return found


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.usefixtures("poisoned")
def test_stops_with_the_last_good_checkpoint_or_skips(config, batch_ids, tmp_path, caplog):
    """A night's run would end in NaN, and its newest checkpoint hold nothing else.

    Then nobody would know which of a million clips to look at; or one clip would end every run.
    """
    with pytest.raises(UserError) as stop:
        train(config, tmp_path)
    source = open_source(config.data.dir, config.data.train_split)
    first = f"{batch_ids[0]} ({source[int(batch_ids[0])]['id']})"
    for part in (
        f"step {BAD}: the loss, the gradients of audio, the gradients of mae_decoder, the update",
        "metrics: grad_norm, loss, reconstruction_loss",
        f"holds the examples {first}, ",
        f"newest checkpoint is of step {BAD - 1}",
        "--config.train.nonfinite=skip",
    ):
        assert part in str(stop.value)
    # A checkpoint was due at that very step.
    before = saved_states(tmp_path)
    assert sorted(before) == list(range(1, BAD))
    found = json.loads((tmp_path / "nonfinite" / f"step_{BAD}.json").read_text())
    assert [row["example_id"] for row in found["examples"]] == batch_ids.tolist()
    assert found["metrics"]["loss"] == "nan"

    logging.getLogger("alm_jax").propagate = True
    state = train(changed(config, nonfinite="skip"), tmp_path)
    assert int(state.step) == STEPS
    assert "Skipped, the 1. so far" in caplog.text
    after = saved_states(tmp_path)
    assert same(after[BAD], after[BAD - 1])
    assert not same(after[BAD + 1], after[BAD])
    assert all(np.isfinite(leaf).all() for leaf in after[STEPS])
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert [loss is None for loss in losses] == [step == BAD for step in range(1, STEPS + 1)]


def test_divergence_ends_the_run_in_either_mode(config, tmp_path, caplog):
    """A rate that blows everything up would be skipped for ever."""
    logging.getLogger("alm_jax").propagate = True
    params = {"audio": 0, "mae_decoder": 0}
    guard = Guard(changed(config, nonfinite="skip"), tmp_path, params, lambda: None)
    fine = {"nonfinite": jnp.int32(0), "loss": jnp.float32(1)}
    wrong = {"nonfinite": jnp.int32(0b100), "loss": jnp.float32(1)}
    ids = jnp.arange(10)
    for step in range(1, 20):
        guard.check(step, wrong, ids)
    guard.check(20, fine, ids)
    for step in range(21, 40):
        guard.check(step, wrong, ids)
    assert "step 39: the gradients of mae_decoder not finite. Its batch" in caplog.text
    assert "and 2 more, all listed" in caplog.text
    assert guard.skipped == 38
    with pytest.raises(UserError, match=r"It is the 20\. in a row, so it is not the data"):
        guard.check(40, wrong, ids)


def test_lost_parameters_end_the_run_in_either_mode(config, tmp_path):
    """A run would be skipped for ever that has no parameters to go on with."""
    params = {"audio": 0, "mae_decoder": 0}
    guard = Guard(changed(config, nonfinite="skip"), tmp_path, params, lambda: 3)
    wrong = {"nonfinite": jnp.int32(0b1000), "loss": jnp.float32(1)}
    with pytest.raises(UserError, match=r"parameters are lost.*is of step 3.*lower optim\.lr"):
        guard.check(4, wrong, jnp.arange(4))


def test_unknown_mode_is_named(config, tmp_path):
    """A typing error would mean one of the modes, silently."""
    with pytest.raises(UserError, match=r"train\.nonfinite='ignore': must be one of"):
        Guard(changed(config, nonfinite="ignore"), tmp_path, {}, lambda: None)
