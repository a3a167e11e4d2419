"""Logical axes of parameters -> mesh axes, and the start-up table that shows the result."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alm_jax.parallel.mesh import replicated

# Which mesh axis holds each logical axis of a parameter. An axis that is absent is not sharded.
RULES: dict[str, str] = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def partition_spec(
    shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh
) -> PartitionSpec:
    """Spec of one parameter; a dimension its mesh axis does not divide stays whole.

    Args:
      shape: the parameter's shape, with leading stacked layers or not.
      axes: logical names of its trailing dimensions.
      mesh: the device mesh.
    """
    names: tuple[str | None, ...] = (None,) * (len(shape) - len(axes)) + tuple(axes)
    spec: list[str | None] = []
    for size, name in zip(shape, names, strict=True):
        axis = RULES.get(name) if name else None
        usable = axis is not None and axis not in spec and size % mesh.shape[axis] == 0
        spec.append(axis if usable else None)
    return PartitionSpec(*spec)


def param_shardings(abstract: nnx.State, mesh: Mesh) -> dict[str, Any]:
    """A nested dict of shardings, in the layout of `nnx.to_pure_dict(abstract)`."""
    flat = {
        path: NamedSharding(
            mesh, partition_spec(variable.get_value().shape, variable.get_metadata()["axes"], mesh)
        )
        for path, variable in nnx.to_flat_state(abstract)
    }
    return nnx.traversals.unflatten_mapping(flat)


def state_shardings(state: Any, of_params: Any, mesh: Mesh) -> Any:
    """Shardings of an optimiser's state: a moment lies where its parameter lies.

    A leaf belongs to the parameter whose path ends its own path (optax keeps moments in trees like
    the parameters', with holes where a rule is not applied); step counters are on every device.

    Args:
      state: the state or its shapes.
      of_params: nested dict of the parameters' shardings.
      mesh: the device mesh.
    """
    known = {tuple(path): sharding for path, sharding in jax.tree.leaves_with_path(of_params)}

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            if (sharding := known.get(path[start:])) is not None and leaf.ndim:
                return sharding
        return replicated(mesh)

    return jax.tree.map_with_path(of, state)


def describe(params: Any, shardings: Any) -> str:
    """A table: parameter, shape, dtype, sharding, bytes a device; the last line is the total."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    specs = jax.tree.leaves(shardings)
    rows, total, local = [], 0, 0
    for (path, leaf), sharding in zip(leaves, specs, strict=True):
        shard = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += math.prod(leaf.shape)
        local += shard
        rows.append(
            (
                jax.tree_util.keystr(path, simple=True, separator="."),
                "x".join(map(str, leaf.shape)) or "scalar",
                str(leaf.dtype),
                ",".join(str(axis) if axis else "-" for axis in sharding.spec) or "-",
                f"{shard:,}",
            )
        )
    head = ("parameter", "shape", "dtype", "sharding", "bytes/device")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(5)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
    return "\n".join([*lines, f"{total:,} parameters, {local:,} bytes a device"])
