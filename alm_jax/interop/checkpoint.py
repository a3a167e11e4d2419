"""An official checkpoint, opened: its tensors by name, none of them read yet."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint that need not be in memory yet.

    Attributes:
      shape: its shape.
      dtype: its NumPy type (bfloat16 by ml_dtypes).
      read: returns its values; a view of the mapped file where that is possible.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An official checkpoint, opened.

    Attributes:
      path: file or folder.
      tensors: official names without the wrapper that a training script put around them.
      config: config.json of a Hugging Face folder, or the training run's arguments; {} without.
      container: how it was written: "torch", "safetensors", "flax" or "memory".
      inside: keys under which the tensors lie in the file, such as ("model",).
      prefix: what was taken off the front of every name, such as "module.".
      beside: what else the file holds, such as the optimiser's state.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    container: str = "memory"
    inside: tuple[str, ...] = ()
    prefix: str = ""
    beside: tuple[str, ...] = ()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that the format cannot do without.

        Raises:
          UserError: there is no such tensor; the checkpoint is of another kind.
        """
        if name not in self.tensors:
            some = ", ".join(sorted(self.tensors)[:4])
            raise UserError(
                f"{self.path} has no tensor {name}, so it is no checkpoint of this --format; "
                f"it holds {len(self.tensors)} tensors such as {some}"
            )
        return self.tensors[name].shape

    def count(self, pattern: str) -> int:
        """How many layers there are: one more than the highest number that `pattern` captures."""
        found = (re.match(pattern, name) for name in self.tensors)
        return max((int(match[1]) + 1 for match in found if match), default=0)
