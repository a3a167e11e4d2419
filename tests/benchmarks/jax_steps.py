"""The train step of a shipped config on one drawn batch, exactly as `alm train` compiles it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alm_jax.parallel.mesh import batch_sharding, make_mesh
from alm_jax.perf.chips import CHIPS
from alm_jax.perf.compiling import batch_shapes, model_flops
from alm_jax.train_state import init_state, make_setup
from alm_jax.train_step import jit_train_step


def drawn_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """Noise and random tokens in the shapes of the config's batches; full clips and captions."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, shape in batch_shapes(config).items():
        if shape.dtype == jnp.bool_:
            value: Any = np.ones(shape.shape, bool)
        elif name == "audio":
            value = rng.integers(-9000, 9000, shape.shape)
        elif name == "audio_length":
            value = np.full(shape.shape, batch["audio"].shape[1])
        elif name == "text":
            value = rng.integers(5, config.tokenizer.vocab_size, shape.shape)
        else:
            value = np.arange(shape.shape[0])
        batch[name] = np.asarray(value, shape.dtype)
    return batch


class Step:
    """A compiled step with its state and batch."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.mesh = make_mesh(config.mesh)
        setup = make_setup(config, config.tokenizer.vocab_size, self.mesh)
        rows = batch_sharding(self.mesh)
        self.state = init_state(config, config.tokenizer.vocab_size, setup)
        self.batch = jax.device_put(drawn_batch(config), rows)
        self.function: Callable[..., Any] = jit_train_step(config, setup, rows)

    def run(self) -> None:
        """One step, to the end."""
        self.dispatch()
        jax.block_until_ready(self.state)

    def dispatch(self) -> None:
        """Starts a step: what Python has to do for it."""
        self.state, _ = self.function(self.state, self.batch)

    @property
    def num_arrays(self) -> int:
        """Arrays of the state."""
        return len(jax.tree.leaves(self.state))

    def mfu(self, seconds: float) -> str:
        """Model FLOPs utilisation, with its formula; "" on a device whose peak is not known."""
        kind = jax.devices()[0].device_kind
        chip = next((c for name, c in CHIPS.items() if name in kind.lower().replace(" ", "")), None)
        if chip is None:
            return ""
        needed = model_flops(self.config, self.mesh)
        share = needed / (seconds * self.mesh.size * chip.flops)
        return (
            f"MFU {share:.2f} = {needed:.3g} FLOPs of the model, forward and backward, counted "
            f"from the products / ({seconds:.3g} s x {self.mesh.size} x {chip.flops:.3g} FLOP/s)"
        )
