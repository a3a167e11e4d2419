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
from alm_jax.errors import UserError
from alm_jax.freezing import frozen_names, hold, hold_statistics
from alm_jax.objectives import OBJECTIVES
from alm_jax.objectives.forward import Forward
from alm_jax.train_state import Setup, TrainState, join

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def total_loss(forward: Forward, config: ConfigDict) -> tuple[jax.Array, Metrics]:
    """Weighted sum of the config's objectives, and all their metrics."""
    if not config.objectives:
        raise UserError(f"config.objectives is empty; name at least one of {list(OBJECTIVES)}")
    loss = jnp.zeros((), jnp.float32)
    metrics: Metrics = {}
    for name, objective in config.objectives.items():
        if name not in OBJECTIVES:
            raise UserError(f"config.objectives.{name} is unknown; it may be {list(OBJECTIVES)}")
        value, more = OBJECTIVES[name](forward, objective)
        loss += objective.weight * value
        metrics |= more
    return loss, metrics


def make_train_step(
    config: ConfigDict, setup: Setup
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step function, not yet jitted.

    Its randomness is a function of `config.seed`, the state's step and the examples' ids, so that
    a resumed run repeats what it would have done.
    """
    frozen = config.copy_and_resolve_references()
    names = frozen_names(setup.shapes.params, frozen.optim.get("frozen", ()))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(frozen.seed), state.step)

        def loss_of(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
            model = nnx.merge(setup.graph, join(hold(params, names), state.stats))
            model.train()  # batch norms use this batch, and move their running statistics
            hold_statistics(model, names)
            loss, metrics = total_loss(Forward(model, batch, frozen, key), frozen)
            return loss, (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

        compute = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (metrics, stats)), grads = compute(state.params)
        updates, opt_state = setup.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            # Early averages would remember the random start: the window grows with the step.
            decay = jnp.minimum(frozen.optim.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, params)
        metrics |= {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "nonfinite": guards.nonfinite_parts(loss, grads, updates),
        }
        after = TrainState(state.step + 1, params, opt_state, ema, stats)
        return guards.kept(state, after, metrics["nonfinite"]), metrics

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

    def eval_step(params: Any, batch: Batch) -> Metrics:
        model = nnx.merge(setup.graph, params)
        forward = Forward(model, batch, frozen, jax.random.key(0), noise=False)
        loss, metrics = total_loss(forward, frozen)
        return metrics | {"loss": loss}

    return eval_step
