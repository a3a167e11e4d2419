"""The device mesh: axes `data`, `fsdp`, `tensor`, one of which may be -1 (what is left)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from alm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
BATCH_SPEC = PartitionSpec(BATCH_AXES)


def make_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """Builds the mesh of `config.mesh`.

    Args:
      config: `data`, `fsdp`, `tensor`: device counts; at most one may be -1.
      devices: the devices to use; default all.

    Returns:
      A mesh with automatic axes, so that the compiler propagates shardings.

    Raises:
      UserError: if the sizes do not multiply to the number of devices.
    """
    count = len(devices) if devices is not None else jax.device_count()
    sizes = [int(config[axis]) for axis in AXES]
    shown = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1:
        raise UserError(f"{shown}: only one axis may be -1")
    rest = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and rest > 0 and count % rest == 0:
        sizes[sizes.index(-1)] = count // rest
    if math.prod(sizes) != count:
        raise UserError(f"{shown} needs {rest} devices or a divisor of them, there are {count}")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch spread over `data` and `fsdp`."""
    return NamedSharding(mesh, BATCH_SPEC)


Traced = TypeVar("Traced", bound=Callable[..., Any])


def in_mesh(mesh: Mesh) -> Callable[[Traced], Traced]:
    """A decorator for what is jitted: its body is traced knowing the mesh."""

    def decorate(function: Traced) -> Traced:
        @functools.wraps(function)
        def traced(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*args)

        return cast(Traced, traced)

    return decorate


def batch_devices(rows: int) -> int:
    """How many devices of the mesh in whose context this is traced share the rows of a batch.

    Rows that they cannot share evenly lie on all of them (the last batch of an evaluation): 1.
    """
    mesh = jax.sharding.get_abstract_mesh()
    count = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return count if rows % count == 0 else 1


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())
