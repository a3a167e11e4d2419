"""The gradient of a batch that is computed in parts, equal to that of the whole (GradCache).

A loss that compares all examples cannot be averaged over parts: each would have fewer negatives.
So the rows of all parts come first, without what a gradient needs of the towers; then the slopes of
the loss by the rows; then each part once more, with those slopes. A step holds of the towers what
one part needs, for the price of a second forward pass of what the slopes depend on: the embeddings
of a contrastive loss. A loss that only sums over examples has slopes that depend on counts alone,
and the compiler leaves the towers out of the first pass.

Source: GradCache, https://arxiv.org/abs/2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from alm_jax.errors import UserError
from alm_jax.parallel.sharding import constrain

Batch = Mapping[str, jax.Array]
RowsOf = Callable[[Any, Batch, jax.Array | None], tuple[Any, Any]]
LossOf = Callable[[Any, Any], tuple[jax.Array, Any]]


def check_parts(parts: int, batch_size: int, devices: int, statistics: Any) -> None:
    """Whether a batch may be computed in parts.

    Args:
      parts: `config.train.microbatches`.
      batch_size: clips in a global batch.
      devices: number of devices that share the rows of a batch.
      statistics: the model's running statistics; a pytree.

    Raises:
      UserError: if the parts are not whole and equal, or the model has batch norms.
    """
    if parts < 1 or batch_size % parts or (parts > 1 and batch_size // parts % devices):
        raise UserError(
            f"train.microbatches={parts} does not divide data.batch_size={batch_size} into equal "
            f"parts that {devices} device(s) can share evenly"
        )
    if parts > 1 and jax.tree.leaves(statistics):
        raise UserError(
            f"train.microbatches={parts}: this model has batch norms, whose statistics are those of"
            " the whole batch, so that parts would train another model; set train.microbatches=1, "
            "and a smaller data.batch_size or more devices"
        )


def gradients(
    rows_of: RowsOf, loss_of: LossOf, params: Any, batch: Batch, parts: int
) -> tuple[jax.Array, Any, Any, Any]:
    """Loss and gradient of a batch.

    Args:
      rows_of: of (params, some of the batch, number of the part or None), pytree of rows as
        `objectives.objective.Objective` describes them, and what the pass has moved besides.
      loss_of: of (params, rows of the whole batch), the loss and metrics.
      params: what to differentiate by.
      batch: arrays [B, ...].
      parts: number of parts; divides B.

    Returns:
      The loss, metrics, what has moved (of the last part), and gradients like params.
    """
    if parts == 1:

        def whole(params: Any) -> tuple[jax.Array, Any]:
            rows, moved = rows_of(params, batch, None)
            loss, metrics = loss_of(params, rows)
            return loss, (metrics, moved)

        (loss, (metrics, moved)), grads = jax.value_and_grad(whole, has_aux=True)(params)
        return loss, metrics, moved, grads

    def take(part: jax.Array) -> Batch:
        # Every parts-th row, so that all devices have rows of every part.
        def of(x: jax.Array) -> jax.Array:
            rows = x.reshape(-1, parts, *x.shape[1:])
            return constrain(jax.lax.dynamic_index_in_dim(rows, part, 1, False), "batch")

        return jax.tree.map(of, batch)

    examples = jax.tree.leaves(batch)[0].shape[0] // parts

    def together(rows: Any) -> Any:
        """Rows [parts, views of B / parts, ...] in the order of the batch."""

        def of(x: jax.Array) -> jax.Array:
            by_example = x.reshape(parts, examples, -1, *x.shape[2:]).swapaxes(0, 1)
            return constrain(by_example.reshape(-1, *x.shape[2:]), "batch")

        return jax.tree.map(of, rows)

    def float_leaves(tree: Any) -> list[jax.Array]:
        """Those with a slope: not token ids or hashes."""
        return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def first(_: None, part: jax.Array) -> tuple[None, Any]:
        return None, rows_of(params, take(part), part)[0]

    def second(grads: Any, inputs: tuple[jax.Array, list[jax.Array]]) -> tuple[Any, Any]:
        part, slopes = inputs

        def product(params: Any) -> tuple[jax.Array, Any]:
            found = rows_of(params, take(part), part)
            pairs = zip(float_leaves(found[0]), slopes, strict=True)
            return sum((jnp.vdot(x, slope) for x, slope in pairs), jnp.zeros(())), found

        more, found = jax.grad(product, has_aux=True)(params)
        return jax.tree.map(jnp.add, grads, more), found

    def loss_alone(params: Any, rows: Any) -> jax.Array:
        return loss_of(params, together(rows))[0]

    numbers = jnp.arange(parts)
    _, rows = jax.lax.scan(first, None, numbers)
    grads, by_rows = jax.grad(loss_alone, argnums=(0, 1), allow_int=True)(params, rows)
    slopes = [x for x in jax.tree.leaves(by_rows) if x.dtype != jax.dtypes.float0]
    # The rows of the second pass, equal to the first's, for those that the first need not compute.
    grads, (rows, moved) = jax.lax.scan(second, grads, (numbers, slopes))
    loss, metrics = loss_of(params, together(rows))
    return loss, metrics, jax.tree.map(lambda x: x[-1], moved), grads
