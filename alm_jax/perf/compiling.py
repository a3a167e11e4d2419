"""Compiles a config's training step without running it, and measures the program."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alm_jax.parallel.mesh import batch_sharding
from alm_jax.perf import flops, hlo
from alm_jax.train_state import Setup, make_setup
from alm_jax.train_step import jit_train_step, make_train_step
from input_pipeline.loader_config import LoaderConfig


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiled step takes on one device, in bytes unless named otherwise.

    Attributes:
      arguments: state and batch.
      temporaries: activations and everything else that lives within a step.
      results: of the step that do not take the place of an argument.
      program: the machine code; None where it was not made.
      collectives: see `hlo.summary`; of one device in a step.
      hbm_traffic: read from and written to main memory in a step.
      operand_traffic: the same, as if every operand and result of a fusion were in main memory.
      estimated_cycles: the TPU compiler's own estimates, summed; None without machine code.
      compile_seconds: what compiling took.
    """

    arguments: int
    temporaries: int
    results: int
    program: int | None
    collectives: dict[str, dict[str, int]]
    hbm_traffic: int
    operand_traffic: int
    estimated_cycles: int | None
    compile_seconds: float

    @property
    def peak(self) -> int:
        """Bytes of main memory that the program needs."""
        return self.arguments + self.temporaries + self.results + (self.program or 0)


def batch_shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch; see `input_pipeline.batches`."""
    data = LoaderConfig.create(config.data)
    rows = data.batch_size

    def array(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *sizes), dtype)

    batch = {
        "audio": array(jnp.int16, data.num_samples),
        "audio_length": array(jnp.int32),
        "text": array(jnp.int32, data.max_text_length),
        "text_mask": array(jnp.bool_, data.max_text_length),
        "example_id": array(jnp.int32),
    }
    if data.labels:
        batch["labels"] = array(jnp.bool_, config.model.classifier.classes)
    if data.mixup_probability:
        batch |= {f"mix_{name}": batch[name] for name in ("audio", "labels") if name in batch}
        batch["mix_length"] = batch["audio_length"]
    return batch


def setup_of(config: ConfigDict, mesh: Any) -> Setup:
    """The run's fixed part; the vocabulary is as large as the config allows."""
    return make_setup(config, config.tokenizer.vocab_size, mesh)


def model_flops(config: ConfigDict, mesh: Any) -> int:
    """Operations that the model needs for one step, all devices together; MFU is defined by them.

    Args:
      config: the experiment.
      mesh: of devices, or an abstract one.
    """
    return flops.count(_jaxpr(flops.without_recomputation(config), mesh))


def executed_flops(config: ConfigDict, mesh: Any) -> int:
    """Operations that are executed: recomputed ones too, exact float32 products six times over.

    Arguments and unit are those of `model_flops`.
    """
    return flops.count(_jaxpr(config, mesh), passes=True)


def _jaxpr(config: ConfigDict, mesh: Any) -> Any:
    setup = setup_of(config, mesh)
    return jax.make_jaxpr(make_train_step(config, setup))(setup.shapes, batch_shapes(config))


def compile_step(config: ConfigDict, mesh: Mesh) -> Compiled:
    """Compiles the very step that `alm train` runs, for the devices of the mesh: those of here."""
    started = time.perf_counter()
    setup = setup_of(config, mesh)
    step: Any = jit_train_step(config, setup, batch_sharding(mesh))
    lowered = step.lower(setup.shapes, batch_shapes(config))
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    program = hlo.Program(compiled.as_text())
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        collectives=hlo.summary(program.collectives(mesh.size)),
        hbm_traffic=program.hbm_bytes(),
        operand_traffic=program.operand_bytes(),
        estimated_cycles=program.estimated_cycles(),
        compile_seconds=time.perf_counter() - started,
    )
