"""Which official tensor is which parameter here: one table a format, read in both directions.

A `Link` says where one official tensor goes: into one parameter, into one layer of a stacked
parameter, or in equal parts into several (a fused query-key-value matrix). Since every change of
layout has its inverse beside it, the same table imports a checkpoint and writes it again, and what
no link names is known to be left over. `Buffer` is a tensor of the official file that is no
parameter: a constant table, a counter, a head that nothing computes with.

Names: official PyTorch tensors are dotted, Flax leaves slash-joined; ours are dotted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]
ANYTHING = math.inf  # tolerance of a value for new models, whatever an imported file holds


class Change(NamedTuple):
    """A change of layout and its inverse, each array -> array without arithmetic.

    Attributes:
      forward: official layout -> ours.
      back: ours -> official layout.
    """

    forward: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


SAME = Change(lambda x: x, lambda x: x)
# PyTorch keeps a linear layer's weights as [outputs, inputs], Flax as [inputs, outputs].
SWAP = Change(lambda x: x.T, lambda x: x.T)


def reshape(official: tuple[int, ...], ours: tuple[int, ...]) -> Change:
    """The same values in the same order under another shape."""
    return Change(lambda x: x.reshape(ours), lambda x: x.reshape(official))


def patch_kernel(width: int, *kernel: int) -> Change:
    """A convolution over patches [width, *kernel] <-> a matrix [pixels of a patch, width]."""
    return Change(
        lambda x: x.reshape(width, math.prod(kernel)).T, lambda x: x.T.reshape(width, *kernel)
    )


class Slot(NamedTuple):
    """A parameter, or the part of one that `index` selects: a layer of a stack, say."""

    name: str
    index: Any = ...


@dataclasses.dataclass(frozen=True)
class Link:
    """One official tensor and the slots that hold it.

    Attributes:
      official: its name.
      slots: where its values go. Several slots take equal parts along `axis` of the changed array.
      change: from the official layout to the slots'.
      axis: see `slots`.
    """

    official: str
    slots: tuple[Slot, ...]
    change: Change = SAME
    axis: int = -1

    def parts(self, tensor: np.ndarray) -> list[np.ndarray]:
        """What each slot gets of the official tensor."""
        changed = self.change.forward(tensor)
        if len(self.slots) == 1:
            return [changed]
        return np.split(changed, len(self.slots), axis=self.axis)

    def whole(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
        """The official tensor, of parameters by dotted name."""
        parts = [params[slot.name][slot.index] for slot in self.slots]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.axis)
        return self.change.back(joined)

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """The shape that the official tensor must have, by the parameters' shapes."""
        names = {slot.name for slot in self.slots}
        zero = np.zeros((), np.float32)
        return self.whole({name: np.broadcast_to(zero, shapes[name]) for name in names}).shape


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An official tensor that is no parameter; it is kept beside the model for the way back.

    Attributes:
      official: its name.
      value: computes what it must hold; a file with another value is refused, since its model is
        not ours. None: any value will do, nothing here computes with it.
      tolerance: largest absolute difference from `value`; with `ANYTHING` its shape may differ too.
      required: whether `from_alm` must write it for a model that was never imported.
    """

    official: str
    value: Callable[[], np.ndarray] | None = None
    tolerance: float = 0.0
    required: bool = True


Links = list[Link | Buffer]


def slots(*names: str, layer: int | None = None) -> tuple[Slot, ...]:
    """Slots of whole parameters, or of one layer of stacked ones."""
    return tuple(Slot(name, ... if layer is None else layer) for name in names)


def table(official: str, ours: str, layer: int | None = None) -> Iterator[Link]:
    """A tensor that has the same name-giver and layout on both sides."""
    yield Link(official, slots(ours, layer=layer))


def torch_linear(official: str, *ours: str, layer: int | None = None) -> Iterator[Link]:
    """A PyTorch linear layer (`weight`, `bias`); several of ours share a fused one in order."""
    kernels = slots(*(f"{name}.kernel" for name in ours), layer=layer)
    yield Link(f"{official}.weight", kernels, SWAP)
    yield Link(f"{official}.bias", slots(*(f"{name}.bias" for name in ours), layer=layer))


def torch_norm(official: str, ours: str, layer: int | None = None) -> Iterator[Link]:
    """A PyTorch LayerNorm or BatchNorm's affine part."""
    yield Link(f"{official}.weight", slots(f"{ours}.scale", layer=layer))
    yield Link(f"{official}.bias", slots(f"{ours}.bias", layer=layer))


def flax_dense(official: str, *ours: str, layer: int | None = None) -> Iterator[Link]:
    """A Flax Dense; several of ours share a fused one in order."""
    for leaf in ("kernel", "bias"):
        yield Link(f"{official}/{leaf}", slots(*(f"{name}.{leaf}" for name in ours), layer=layer))


def flax_norm(official: str, ours: str, layer: int | None = None) -> Iterator[Link]:
    """A Flax LayerNorm."""
    for leaf in ("scale", "bias"):
        yield Link(f"{official}/{leaf}", slots(f"{ours}.{leaf}", layer=layer))


def not_covered(links: Links, shapes: Shapes) -> list[str]:
    """Parameters that the links do not fill exactly once, element by element.

    Raises:
      KeyError: a link names a parameter that does not exist.
    """
    counts = {name: np.zeros(shape, np.uint8) for name, shape in shapes.items()}
    for link in links:
        if isinstance(link, Link):
            for slot in link.slots:
                counts[slot.name][slot.index] += 1
    return sorted(name for name, count in counts.items() if not (count == 1).all())
