"""The training state, a pure pytree, and its initialisation straight into its shards."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alm_jax.audio.frontend import LogMelConfig
from alm_jax.models.audio_text import AudioTextModel
from alm_jax.optim import make_optimizer
from alm_jax.parallel.mesh import replicated
from alm_jax.parallel.sharding import param_shardings, state_shardings


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes.

    Attributes:
      step: int32 scalar, steps taken.
      params: nested dict of parameters.
      opt_state: optax state.
      ema: moving average of params, or None if `optim.ema_decay` is 0.
      stats: nested dict of what a forward pass moves rather than the optimiser, the running
        statistics of batch norms; empty for models without them.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    stats: Any = flax.struct.field(default_factory=dict)

    @property
    def eval_params(self) -> Any:
        """All arrays of the model to evaluate and export."""
        return join(self.params if self.ema is None else self.ema, self.stats)


class Setup(NamedTuple):
    """What stays fixed during a run.

    Attributes:
      graph: the model's structure; `nnx.merge(graph, join(params, stats))` gives the model.
      optimizer: the optax transformation.
      shapes: TrainState of ShapeDtypeStruct.
      shardings: TrainState of shardings.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    shapes: TrainState
    shardings: TrainState

    @property
    def mesh(self) -> Mesh:
        """The devices of the run."""
        return self.shardings.step.mesh


def join(params: Any, stats: Any) -> Any:
    """One nested dict of two that share no leaf."""
    if not stats:
        return params
    flat = nnx.traversals.flatten_mapping(params) | nnx.traversals.flatten_mapping(stats)
    return nnx.traversals.unflatten_mapping(flat)


def split(variables: nnx.State) -> tuple[nnx.State, nnx.State]:
    """A model's parameters, and its running statistics."""
    params, stats = nnx.split_state(variables, nnx.Param, nnx.BatchStat)
    return params, stats


def build_model(config: ConfigDict, vocab_size: int, seed: int) -> AudioTextModel:
    """The model of a config with freshly drawn parameters."""
    return AudioTextModel(
        config,
        vocab_size=vocab_size,
        num_mels=LogMelConfig(**config.frontend).num_mels,
        rngs=nnx.Rngs(params=seed),
    )


def model_graph(config: ConfigDict, vocab_size: int) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and all abstract arrays of the model; allocates nothing."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: build_model(config, vocab_size, 0)))
    return graph, abstract


def make_setup(config: ConfigDict, vocab_size: int, mesh: Mesh) -> Setup:
    """Structure, optimiser, shapes and shardings of a run; allocates nothing."""
    graph, abstract = model_graph(config, vocab_size)
    trained, moved = split(abstract)
    params, stats = nnx.to_pure_dict(trained), nnx.to_pure_dict(moved)
    optimizer = make_optimizer(config.optim, config.train.steps, params)
    of_params = param_shardings(trained, mesh)
    opt_state = jax.eval_shape(optimizer.init, params)
    of_opt = state_shardings(opt_state, of_params, mesh)
    ema = params if config.optim.ema_decay else None
    return Setup(
        graph,
        optimizer,
        TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state, ema, stats),
        TrainState(
            replicated(mesh),
            of_params,
            of_opt,
            of_params if ema is not None else None,
            param_shardings(moved, mesh),
        ),
    )


def init_state(config: ConfigDict, vocab_size: int, setup: Setup) -> TrainState:
    """Draws the parameters from `config.seed`; every array is created in its shards."""

    def init() -> TrainState:
        variables = split(nnx.state(build_model(config, vocab_size, config.seed)))
        params, stats = map(nnx.to_pure_dict, variables)
        ema = jax.tree.map(jnp.copy, params) if config.optim.ema_decay else None
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, setup.optimizer.init(params), ema, stats)

    return jax.jit(init, out_shardings=setup.shardings)()
