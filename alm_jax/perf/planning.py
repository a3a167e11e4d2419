"""A plan: what one training step of a config takes on a topology, as named fields."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.parallel.mesh import batch_sharding, make_mesh, row_devices
from alm_jax.perf.chips import GIB
from alm_jax.perf.compiling import (
    Compiled,
    batch_shapes,
    compile_step,
    executed_flops,
    model_flops,
    setup_of,
)
from alm_jax.perf.largest_batch import LargestBatch, find_largest
from alm_jax.perf.roofline import Roofline, roofline
from alm_jax.perf.topologies import Topology
from alm_jax.perf.tpu_compiling import compile_for_tpu

Log = Callable[[str], None]
# Kept free for machine code that has not been made: the shipped configs' takes 0.07 to 0.22 GiB.
_CODE_BYTES = GIB // 4


@dataclasses.dataclass(frozen=True)
class State:
    """What is there before a step, counted without compiling: bytes are of one device.

    Attributes:
      parameters: their number, of the whole model.
      parameter_bytes: of the parameters.
      optimizer_bytes: of the optimiser's state.
      other_bytes: of the parameters' average, running statistics and the step's number.
      batch_bytes: of the batch.
    """

    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    other_bytes: int
    batch_bytes: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.parameter_bytes + self.optimizer_bytes + self.other_bytes + self.batch_bytes


@dataclasses.dataclass(frozen=True)
class Plan:
    """See `alm plan`; all bytes are of one chip, all FLOPs of one step on all chips.

    Attributes:
      config: its name.
      topology: as on the command line.
      chips: number of devices.
      slices: that they make.
      mesh: axis -> size.
      batch_size: global.
      state: what is there before a step.
      flops: that the model needs.
      executed_flops: that are executed, see `compiling.executed_flops`.
      hbm_capacity: that a program may take; None for simulated devices.
      compiled: the step.
      in_parts: whether `train.microbatches` may be more than 1, see `accumulation.check_parts`.
      roofline: bounds of the step; None where the chip has no figures.
      largest_batch: that fits; None where nothing limits it or nobody asked.
      versions: of jax, jaxlib and libtpu.
    """

    config: str
    topology: str
    chips: int
    slices: int
    mesh: dict[str, int]
    batch_size: int
    state: State
    flops: int
    executed_flops: int
    hbm_capacity: int | None
    compiled: Compiled
    in_parts: bool
    roofline: Roofline | None
    largest_batch: LargestBatch | None
    versions: dict[str, str]

    @property
    def fits(self) -> bool:
        """Whether a chip has the memory."""
        return self.hbm_capacity is None or self.needed <= self.hbm_capacity

    @property
    def needed(self) -> int:
        """Bytes of a chip that the step needs."""
        return self.compiled.peak

    def to_json(self) -> dict[str, Any]:
        """Nested dicts of numbers and strings."""
        return dataclasses.asdict(self) | {"needed": self.needed, "fits": self.fits}


def count_state(config: ConfigDict, mesh: Any) -> State:
    """Parameters and bytes of the state; allocates and compiles nothing.

    Args:
      config: the experiment.
      mesh: of devices, or an abstract one.
    """
    setup = setup_of(config, mesh)

    def shard(tree: Any, shardings: Any) -> int:
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
        return sum(_shard_bytes(leaf, sharding) for leaf, sharding in pairs)

    shapes, shardings = setup.shapes, setup.shardings
    params = shard(shapes.params, shardings.params)
    optimizer = shard(shapes.opt_state, shardings.opt_state)
    rows = batch_sharding(mesh)
    return State(
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params)),
        parameter_bytes=params,
        optimizer_bytes=optimizer,
        other_bytes=shard(shapes, shardings) - params - optimizer,
        batch_bytes=sum(_shard_bytes(leaf, rows) for leaf in batch_shapes(config).values()),
    )


def _shard_bytes(leaf: Any, sharding: NamedSharding) -> int:
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def make_plan(
    config: ConfigDict,
    topology: Topology,
    *,
    batch_per_chip: int | None = None,
    search: bool = True,
    machine_code: bool = False,
    log: Log = lambda message: None,
) -> Plan:
    """Compiles the config's step for a topology and measures it.

    Args:
      config: the experiment.
      topology: what to compile for.
      batch_per_chip: clips a chip; None takes the config's global batch.
      search: also look for the largest batch that fits, which compiles twice more or so.
      machine_code: compile to the end, see `tpu_compiling.compile_for_tpu`.
      log: receives what is being done, since each compilation takes a minute or so.

    Raises:
      UserError: the mesh or the batch do not fit the topology, or the compiler crashed.
    """
    devices = topology.devices()
    mesh = make_mesh(config.mesh, devices)
    rows = row_devices(mesh)
    batch = batch_per_chip * mesh.size if batch_per_chip else config.data.batch_size
    if batch % rows:
        raise UserError(
            f"data.batch_size={batch} cannot be spread over data x fsdp = {rows} devices of"
            f" {topology.name}; the nearest that can is {round(batch / rows) * rows or rows}"
        )
    config = with_batch(config, batch)
    log(f"{topology.name}: tracing the step to count its operations")
    needed_flops, done_flops = model_flops(config, mesh), executed_flops(config, mesh)
    capacity = None if topology.chip is None else topology.chip.hbm_bytes

    def measure(batch: int) -> Compiled:
        log(f"{topology.name}: compiling for {mesh.size} devices, batch {batch}")
        sized = with_batch(config, batch)
        if topology.chip is None:
            compiled = compile_step(sized, mesh)
        else:
            compiled = compile_for_tpu(sized, topology, machine_code=machine_code)
        fits = "" if capacity is None or compiled.peak <= capacity else ", does not fit"
        log(f"{topology.name}: compiled in {compiled.compile_seconds:.0f} s{fits}")
        return compiled

    compiled = measure(batch)
    largest = bounds = None
    if search and capacity is not None:
        room = capacity if machine_code else capacity - _CODE_BYTES
        largest = find_largest(
            batch, compiled.peak, lambda batch: measure(batch).peak, room, step=rows
        )
    if topology.chip:
        bounds = roofline(
            compiled,
            topology.chip,
            chips=mesh.size,
            slices=topology.slices,
            batch_size=batch,
            model_flops=needed_flops,
            executed_flops=done_flops,
        )
    return Plan(
        config=config.name,
        topology=topology.name,
        chips=mesh.size,
        slices=topology.slices,
        mesh=dict(mesh.shape),
        batch_size=batch,
        state=count_state(config, mesh),
        flops=needed_flops,
        executed_flops=done_flops,
        hbm_capacity=capacity,
        compiled=compiled,
        in_parts=not jax.tree.leaves(setup_of(config, mesh).shapes.stats),
        roofline=bounds,
        largest_batch=largest,
        versions=_versions(),
    )


def with_batch(config: ConfigDict, batch_size: int) -> ConfigDict:
    """A copy with another global batch."""
    copy = config.copy_and_resolve_references()
    copy.data.batch_size = batch_size
    return copy


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found
