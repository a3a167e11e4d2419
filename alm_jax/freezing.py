"""Parameters that a run does not train, named by `optim.frozen`, such as a linear probe's encoder.

They get no gradient, no state of the optimiser and no update, and no batch norm under such a name
moves: it computes with its running statistics, as in evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from alm_jax.errors import UserError
from alm_jax.models.batch_norm import BatchNorm
from alm_jax.patterns import compiled

Names = frozenset[str]


def frozen_names(params: Any, patterns: Sequence[str]) -> Names:
    """Dotted names of the parameters that some of the regular expressions match.

    Args:
      params: nested dict of the parameters or their shapes; only names are read.
      patterns: `optim.frozen`.

    Raises:
      UserError: a pattern matches nothing, or all parameters are frozen.
    """
    every = [".".join(map(str, path)) for path in nnx.traversals.flatten_mapping(params)]
    parts = sorted({name.split(".")[0] for name in every})
    searches = compiled(patterns, "optim.frozen")
    for search in searches:
        if not any(map(search.search, every)):
            raise UserError(
                f"optim.frozen: {search.pattern!r} matches no parameter; parts are {parts}"
            )
    found = frozenset(name for name in every if any(s.search(name) for s in searches))
    if len(found) == len(every):
        raise UserError(
            f"optim.frozen={tuple(patterns)} leaves nothing to train; parts are {parts}"
        )
    return found


def trained(tree: Any, frozen: Names) -> Any:
    """A nested dict without the frozen leaves."""
    if not frozen:
        return tree
    return _split(tree, frozen)[0]


def hold(params: Any, frozen: Names) -> Any:
    """The parameters, the frozen ones without gradient, so that none is computed for them."""
    if not frozen:
        return params
    kept, held = _split(params, frozen)
    return _join(kept, jax.tree.map(jax.lax.stop_gradient, held))


def hold_statistics(model: nnx.Module, frozen: Names) -> None:
    """Puts the batch norms of frozen parts back into evaluation mode."""
    if frozen:
        for path, module in nnx.iter_modules(model):
            if isinstance(module, BatchNorm) and ".".join(map(str, (*path, "scale"))) in frozen:
                module.use_running_average = True


def with_frozen(inner: optax.GradientTransformation, frozen: Names) -> optax.GradientTransformation:
    """An optimiser that sees the trained parameters only, and moves the others by zero."""
    if not frozen:
        return inner

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        kept, held = _split(updates, frozen)
        kept, state = inner.update(kept, state, None if params is None else trained(params, frozen))
        return _join(kept, jax.tree.map(jnp.zeros_like, held)), state

    return optax.GradientTransformation(lambda params: inner.init(trained(params, frozen)), update)


def _split(tree: Any, frozen: Names) -> tuple[Any, Any]:
    flat = nnx.traversals.flatten_mapping(tree)
    held = {path: leaf for path, leaf in flat.items() if ".".join(map(str, path)) in frozen}
    kept = {path: leaf for path, leaf in flat.items() if path not in held}
    return nnx.traversals.unflatten_mapping(kept), nnx.traversals.unflatten_mapping(held)


def _join(kept: Any, held: Any) -> Any:
    flatten = nnx.traversals.flatten_mapping
    return nnx.traversals.unflatten_mapping(flatten(kept) | flatten(held))
