"""The best checkpoint of a run, kept by a named metric."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import alm_jax
from alm_jax.best_checkpoint import BestCheckpoint
from alm_jax.checkpoints import Checkpoints, latest_step
from alm_jax.config import save_config
from alm_jax.errors import UserError
from alm_jax.metrics import read_metrics
from alm_jax.train import train
from alm_jax.train_state import TrainState
from input_pipeline.loader import TrainLoader
from tests.small_configs import stage1

METRIC = "eval/validation/audio_to_text/R@10"


def state(step: int) -> TrainState:
    params = {"w": jnp.full((3,), step, jnp.float32)}
    return TrainState(jnp.int32(step), params, {"m": params}, None)


def start(workdir: Path, metric: str = METRIC, *, resumed: bool = False) -> BestCheckpoint:
    config = stage1(f"train.keep_best={metric}", "data.eval_split=validation")
    workdir.mkdir(exist_ok=True)
    save_config(config, workdir / "config.json")
    return BestCheckpoint(config, workdir, {"config_name": "x"}, resumed=resumed)


def kept(workdir: Path) -> tuple[float, float]:
    """Value and weights of the best checkpoint."""
    saves = Checkpoints(workdir / "best", read_only=True)
    params, metadata = saves.restore_params()
    saves.close()
    record = json.loads((workdir / "best" / "best.json").read_text())
    assert record["value"] == metadata["value"] and record["step"] == latest_step(workdir / "best")
    assert metadata["config_name"] == "x" and (workdir / "best" / "config.json").exists()
    return record["value"], float(params["w"][0])


def test_the_best_stays(tmp_path: Path) -> None:
    """The last parameters, or those of another step, would be taken for the best."""
    best = start(tmp_path)
    for step, value in ((10, 0.3), (20, 0.5), (30, 0.4), (40, float("nan")), (50, 0.5)):
        best.see(state(step), {METRIC: value, "eval/validation/loss": 1.0})
    assert kept(tmp_path) == (0.5, 20.0)
    # A run that goes on knows what it has; the step that it was set back to is no news.
    again = start(tmp_path, resumed=True)
    again.see(state(20), {METRIC: 0.6})
    again.see(state(60), {METRIC: 0.45})
    assert kept(tmp_path) == (0.5, 20.0)
    again.see(state(70), {METRIC: 0.55})
    assert kept(tmp_path) == (0.55, 70.0)
    # Of losses and ranks the lowest is best; another metric starts anew.
    loss = start(tmp_path, "eval/validation/loss", resumed=True)
    for step, value in ((80, 2.0), (90, 1.0), (100, 1.5)):
        loss.see(state(step), {"eval/validation/loss": value})
    assert kept(tmp_path) == (1.0, 90.0)
    # An effective rank is no rank: the more directions embeddings vary in, the better.
    rank = start(tmp_path, "eval/validation/audio_rank", resumed=True)
    for step, value in ((110, 3.0), (120, 1.0)):
        rank.see(state(step), {"eval/validation/audio_rank": value})
    assert kept(tmp_path) == (3.0, 110.0)
    # A run from nothing must not be measured against one that is gone.
    fresh = start(tmp_path)
    fresh.see(state(5), {METRIC: 0.01})
    assert kept(tmp_path) == (0.01, 5.0)


def test_metrics_that_are_not_there(tmp_path: Path) -> None:
    """A typing error would be found after the run, with nothing kept."""
    with pytest.raises(UserError, match=r"keep_best='R@10': must be a metric .* eval/validation/"):
        start(tmp_path, "R@10")
    best = start(tmp_path, "eval/validation/audio_to_text/R@1O")
    with pytest.raises(UserError, match=r"no metric of this run.*did you mean .*R@10"):
        best.see(state(0), {METRIC: 0.1})
    start(tmp_path, "").see(state(0), {})
    assert not (tmp_path / "best").exists()


def test_in_training(tiny_dataset: Path, tmp_path: Path, monkeypatch) -> None:
    """A stopped run would lose its best, or the best be of another step than it says."""
    config = stage1(
        f"data.dir={tiny_dataset}",
        "data.train_split=train[:32]",
        "data.eval_split=validation[:8]",
        "eval.batch_size=8",
        "eval.every_steps=1",
        "train.steps=5",
        "train.save_every_steps=2",
        "train.log_every_steps=1",
        "train.keep_best=eval/validation[:8]/loss",
        "optim.lr=3e-2",  # high: the last step is not the best
    )
    fetch, count = TrainLoader.__next__, 0

    def killed(self):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return fetch(self)

    monkeypatch.setattr(TrainLoader, "__next__", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    monkeypatch.setattr(TrainLoader, "__next__", fetch)
    train(config, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    curve = {
        line["step"]: line["eval/validation[:8]/loss"]
        for line in lines
        if "eval/validation[:8]/loss" in line
    }
    assert sorted(curve) == list(range(6))  # the start is measured too
    record = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert record["value"] == min(curve.values())
    assert record["step"] == min(curve, key=curve.__getitem__)
    model = alm_jax.load(tmp_path / "run" / "best")
    assert model.config.name == config.name
    assert model.embed_audio(np.zeros(8000, np.int16), 16000).shape == (1, model.embed_dim)
