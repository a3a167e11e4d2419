"""Parameters drawn by NumPy for modules that are built abstractly.

Compiling a model's own initialisation takes longer than the tests that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx


def draw_like(shapes: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Standard normal numbers x 0.3, scales around one: no layer is the identity or dead."""
    rng = np.random.default_rng(seed)
    flat = nnx.traversals.flatten_mapping(shapes)
    return nnx.traversals.unflatten_mapping(
        {
            path: np.asarray(
                float(path[-1] == "scale") + 0.3 * rng.standard_normal(leaf.shape), leaf.dtype
            )
            for path, leaf in flat.items()
        }
    )


def draw(abstract: nnx.State, seed: int = 0) -> dict[str, Any]:
    """As `draw_like`, for the abstract state of a module."""
    return draw_like(nnx.to_pure_dict(abstract), seed)


def build(make: Callable[[], nnx.Module], seed: int = 0) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Structure and drawn parameters of the module that `make` returns."""
    graph, abstract = nnx.split(nnx.eval_shape(make))
    return graph, draw(abstract, seed)
