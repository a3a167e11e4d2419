"""The device mesh: axes `data`, `fsdp`, `tensor`, each within a slice and across slices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from alm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ACROSS = ("dcn_data", "dcn_fsdp", "dcn_tensor")
BATCH_AXES = ("data", "fsdp")
BATCH_SPEC = PartitionSpec(BATCH_AXES)


def _sizes(config: ConfigDict, names: Sequence[str], count: int, unit: str) -> list[int]:
    """The sizes that multiply to `count`, with the -1 among them resolved."""
    sizes = [int(config[name]) for name in names]
    shown = ", ".join(f"mesh.{name}={size}" for name, size in zip(names, sizes, strict=True))
    if sizes.count(-1) > 1:
        raise UserError(f"{shown}: only one axis may be -1")
    rest = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and rest > 0 and count % rest == 0:
        sizes[sizes.index(-1)] = count // rest
    if math.prod(sizes) != count:
        raise UserError(f"{shown} needs {rest} {unit} or a divisor of them, there are {count}")
    return sizes


def arrange(config: ConfigDict, devices: Sequence[Any]) -> np.ndarray:
    """The devices by their places in the mesh.

    TPU slices are told by the devices. Elsewhere the processes count as slices once a `dcn_` size
    asks for several: the machines of a GPU cluster.

    Args:
      config: `data`, `fsdp`, `tensor`: devices within a slice; `dcn_data`, `dcn_fsdp`,
        `dcn_tensor`: slices. Of each three at most one may be -1, what is left.
      devices: all of them.

    Returns:
      [data, fsdp, tensor] devices; along each axis those of a slice lie next to each other.

    Raises:
      UserError: if the sizes do not multiply to the number of slices, or of devices in a slice.
    """
    # Workdirs of before there were slices name no sizes of them.
    defaults = dict(zip(ACROSS, (-1, 1, 1), strict=True))
    across = ConfigDict({name: config.get(name, size) for name, size in defaults.items()})
    of_processes = devices[0].platform != "tpu"
    if of_processes:
        several = any(size not in (-1, 1) for size in across.values())
        slices = len({device.process_index for device in devices}) if several else 1
    else:
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    outer = _sizes(across, ACROSS, slices, "slices")
    within = "devices" if slices == 1 else f"devices of each of {slices} slices (else mesh.dcn_*)"
    inner = _sizes(config, AXES, len(devices) // slices, within)
    # An axis may take half of a torus dimension where no whole one has its size.
    split = dict(allow_split_physical_axes=True)
    if slices == 1:
        return mesh_utils.create_device_mesh(inner, devices, **split)
    return mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, process_is_granule=of_processes, **split
    )


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh of `config.mesh`; see `arrange`.

    Args:
      config: sizes within a slice, and of slices.
      devices: the devices to use; default all.

    Returns:
      A mesh with automatic axes, so that the compiler propagates shardings.

    Raises:
      UserError: if the sizes do not multiply to the number of devices.
    """
    placed = arrange(config, jax.devices() if devices is None else devices)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


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


def row_devices(mesh: Mesh | AbstractMesh) -> int:
    """How many parts the rows of a batch are divided into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_devices(rows: int) -> int:
    """How many devices of the mesh in whose context this is traced share the rows of a batch.

    Rows that they cannot share evenly lie on all of them (the last batch of an evaluation): 1.
    """
    mesh = jax.sharding.get_abstract_mesh()
    count = 1 if mesh.empty else row_devices(mesh)
    return count if rows % count == 0 else 1


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())
