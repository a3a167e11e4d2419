"""Logical axes of arrays -> mesh axes, and the start-up table that shows the result."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from alm_jax.parallel.mesh import BATCH_AXES, replicated

# Which mesh axes hold each logical axis of an array. An axis that is absent is not sharded.
RULES: dict[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}


def partition_spec(
    shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Spec of one array; a dimension its mesh axes do not divide stays whole.

    Args:
      shape: the array's shape; a parameter's with leading stacked layers or not.
      axes: logical names of its trailing dimensions.
      mesh: the device mesh.
    """
    names: tuple[str | None, ...] = (None,) * (len(shape) - len(axes)) + tuple(axes)
    spec: list[str | tuple[str, ...] | None] = []
    taken: set[str] = set()
    for size, name in zip(shape, names, strict=True):
        held = RULES.get(name, ()) if name else ()
        if tuple(axes) == ("embed",):
            held = ()  # a norm's scale is not worth the messages that would gather it
        parts = math.prod(mesh.shape[axis] for axis in held)
        usable = held and taken.isdisjoint(held) and size % parts == 0
        spec.append((held if len(held) > 1 else held[0]) if usable else None)
        taken.update(held if usable else ())
    return PartitionSpec(*spec)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """x, of which the compiler has to lay every dimension out as its logical axis says.

    Args:
      x: an array inside a jitted function.
      axes: logical names of its leading dimensions; None, and those after the last, stay whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    names = axes + (None,) * (x.ndim - len(axes))
    return jax.lax.with_sharding_constraint(x, partition_spec(x.shape, names, mesh))


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


def whole_parameters(params: Any, shardings: Any, share: float = 0.01) -> str:
    """A warning that names the parameters which no device shares with another.

    Args:
      params: nested dict of arrays or their shapes.
      shardings: of the same structure.
      share: of all parameters, below which one is not worth a word.

    Returns:
      "" if there are none, or the mesh shares no parameters.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    specs = jax.tree.leaves(shardings)
    shape = specs[0].mesh.shape
    if shape["fsdp"] * shape["tensor"] == 1:
        return ""
    total = sum(leaf.size for _, leaf in leaves)
    found = [
        (leaf.size, jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape)
        for (path, leaf), sharding in zip(leaves, specs, strict=True)
        if leaf.size >= share * total and sharding.shard_shape(leaf.shape) == leaf.shape
    ]
    if not found:
        return ""
    found.sort(reverse=True)
    named = [
        f"  {name} {'x'.join(map(str, dims))}: {size:,} of {total:,} parameters"
        for size, name, dims in found[:5]
    ]
    return "\n".join(
        [
            f"{len(found)} large parameter(s) lie whole on every device of mesh.fsdp="
            f"{shape['fsdp']}, mesh.tensor={shape['tensor']}, since these sizes divide none of "
            "their dimensions that may be shared; choose others, or another width or vocabulary:",
            *named,
        ]
    )
