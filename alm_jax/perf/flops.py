"""Floating-point operations of a training step, counted from its equations.

Only matrix products and convolutions count, 2 for each multiplication with its addition, as MFU is
usually defined. The step's jaxpr is walked, and the body of a scan counts as often as it runs,
which XLA's own count does not do. So the count holds for every config, its towers and its masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax import lax
from jax.extend import core
from ml_collections import ConfigDict

# Products of float32 at the highest precision are six passes of bfloat16 on the TPU's matrix unit.
HIGHEST_PASSES = 6
_HIGHEST = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


def without_recomputation(config: ConfigDict) -> ConfigDict:
    """A copy of a config that computes nothing twice or in vain, to count what the model needs."""
    copy = config.copy_and_resolve_references()
    plain = {"remat": "none", "attention": "xla"}  # kernels recompute, and compute masked logits

    def clear(node: ConfigDict) -> None:
        for name, value in node.items():
            if isinstance(value, ConfigDict):
                clear(value)
            elif name in plain:
                node[name] = plain[name]

    clear(copy.model)
    copy.train.microbatches = 1  # parts embed everything once more
    return copy


def count(jaxpr: Any, *, passes: bool = False) -> int:
    """Operations of all matrix products and convolutions of a jaxpr.

    Args:
      jaxpr: what `jax.make_jaxpr` returns.
      passes: count a float32 product at the highest precision `HIGHEST_PASSES` times.

    Returns:
      Operations over all devices; a loop whose length the program does not know counts once, of
      the branches of a condition the most expensive. What nothing reads is not counted: the
      compiler leaves it out.
    """
    jaxpr, total = getattr(jaxpr, "jaxpr", jaxpr), 0
    read = {id(value) for value in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(value) in read for value in equation.outvars):
            read.update(id(value) for value in equation.invars)
            total += _equation(equation, passes)
    return total


def _equation(equation: Any, passes: bool) -> int:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        times = HIGHEST_PASSES if passes and params["precision"] == _HIGHEST else 1
        return times * (_product(equation) if name == "dot_general" else _convolution(equation))
    inner = [count(jaxpr, passes=passes) for jaxpr in _jaxprs(params.values())]
    if not inner:
        return 0
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "shard_map":
        # Its body is what one device does.
        devices = math.prod(params["mesh"].shape[axis] for axis in _manual_axes(params))
        return devices * sum(inner)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * sum(inner)
    return sum(inner)


def _manual_axes(params: Any) -> Any:
    # The parameter's name has changed once; a guess would count wrongly without a word.
    return params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]


def _jaxprs(values: Any) -> Iterator[Any]:
    """The jaxprs among an equation's parameters: bodies of loops, branches, called functions."""
    for value in values:
        if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    out = equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    out = equation.outvars[0].aval.shape
    inputs = kernel[numbers.rhs_spec[1]]  # of one feature group
    window = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    return 2 * math.prod(out) * inputs * window
