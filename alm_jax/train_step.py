"""Loss -> gradients -> update: a pure function of state and batch, the same for every system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from alm_jax import guards
from alm_jax.accumulation import check_parts, gradients
from alm_jax.errors import UserError
from alm_jax.freezing import frozen_names, hold, hold_statistics
from alm_jax.models.audio_text import AudioTextModel
from alm_jax.objectives import OBJECTIVES
from alm_jax.objectives.forward import Forward
from alm_jax.objectives.objective import Rows
from alm_jax.parallel.mesh import in_mesh, row_devices
from alm_jax.train_state import Setup, TrainState, join

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def rows_of_objectives(forward: Forward, config: ConfigDict) -> dict[str, Rows]:
    """What the config's objectives have to know of each example, by their names; and "packing"."""
    if not config.objectives:
        raise UserError(f"config.objectives is empty; name at least one of {list(OBJECTIVES)}")
    for name in config.objectives:
        if name not in OBJECTIVES:
            raise UserError(f"config.objectives.{name} is unknown; it may be {list(OBJECTIVES)}")
    rows = {name: OBJECTIVES[name].rows(forward, c) for name, c in config.objectives.items()}
    return rows | ({"packing": forward.packed} if forward.packed else {})


def loss_of_rows(
    rows: dict[str, Rows], model: AudioTextModel, config: ConfigDict
) -> tuple[jax.Array, Metrics]:
    """Weighted sum of the objectives of the whole batch's rows, and all their metrics."""
    loss = jnp.zeros((), jnp.float32)
    metrics: Metrics = {}
    for name, objective in config.objectives.items():
        value, more = OBJECTIVES[name].loss(rows[name], model, objective)
        loss += objective.weight * value
        metrics |= more
    if "packing" in rows:
        counts = {name: count.sum() for name, count in rows["packing"].items()}
        metrics["packing_lost"] = counts["lost"] / jnp.maximum(counts["patches"], 1)
    return loss, metrics


def total_loss(forward: Forward, config: ConfigDict) -> tuple[jax.Array, Metrics]:
    """Weighted sum of the config's objectives, and all their metrics."""
    return loss_of_rows(rows_of_objectives(forward, config), forward.model, config)


def make_train_step(
    config: ConfigDict, setup: Setup
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step function, not yet jitted.

    Its randomness is a function of `config.seed`, the state's step and the examples' ids, so that
    a resumed run repeats what it would have done.
    """
    config = config.copy_and_resolve_references()
    frozen = frozen_names(setup.shapes.params, config.optim.get("frozen", ()))
    parts = config.train.get("microbatches", 1)
    if parts != 1:
        check_parts(parts, config.data.batch_size, row_devices(setup.mesh), setup.shapes.stats)

    @in_mesh(setup.mesh)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def model_of(params: Any) -> AudioTextModel:
            model = nnx.merge(setup.graph, join(hold(params, frozen), state.stats))
            model.train()  # batch norms use this batch, and move their running statistics
            hold_statistics(model, frozen)
            return model

        def rows_of(params: Any, batch: Batch, part: jax.Array | None) -> tuple[Any, Any]:
            model = model_of(params)
            rows = rows_of_objectives(Forward(model, batch, config, key, part=part), config)
            return rows, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        def loss_of(params: Any, rows: dict[str, Rows]) -> tuple[jax.Array, Metrics]:
            return loss_of_rows(rows, model_of(params), config)

        loss, metrics, stats, grads = gradients(rows_of, loss_of, state.params, batch, parts)
        updates, opt_state = setup.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            # Early averages would remember the random start: the window grows with the step.
            decay = jnp.minimum(config.optim.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, params)
        metrics |= {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
        }
        wrong = guards.nonfinite_parts(loss, grads)
        metrics["nonfinite"] = guards.as_number(wrong, metrics["update_norm"])
        after = TrainState(state.step + 1, params, opt_state, ema, stats)
        return guards.kept(state, after, wrong), metrics

    return train_step


def jit_train_step(
    config: ConfigDict, setup: Setup, batch_sharding: jax.sharding.Sharding
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The compiled step: state donated, shardings fixed."""
    return jax.jit(
        make_train_step(config, setup),
        in_shardings=(setup.shardings, batch_sharding),
        out_shardings=(setup.shardings, None),
        donate_argnums=0,
    )


def make_eval_step(config: ConfigDict, setup: Setup) -> Callable[..., Metrics]:
    """The losses of a batch under one fixed draw of masks; no dropout, augmentation or update."""
    frozen = config.copy_and_resolve_references()

    @in_mesh(setup.mesh)
    def eval_step(params: Any, batch: Batch) -> Metrics:
        model = nnx.merge(setup.graph, params)
        forward = Forward(model, batch, frozen, jax.random.key(0), noise=False)
        loss, metrics = total_loss(forward, frozen)
        return metrics | {"loss": loss}

    return eval_step
