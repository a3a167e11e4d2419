"""Guards against steps that are not finite: such a step changes nothing, and it is reported.

Half of a guard is inside the jitted step: where the loss or gradients are not finite, the new
state is the old one. The other half reads one number of each step after the next one was
dispatched, so that the device never waits for it; every process reads the same number and decides
the same.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.train_state import TrainState
from input_pipeline.loader_config import LoaderConfig

log = logging.getLogger("alm_jax")

MODES = ("stop", "skip")
# So many steps in a row are no accident of the data: the parameters themselves give no finite loss.
MOST_IN_A_ROW = 20
_NAMED_EXAMPLES = 8
_FOLDER = "nonfinite"

Metrics = Mapping[str, Any]


def nonfinite_parts(loss: jax.Array, grads: Mapping[str, Any]) -> jax.Array:
    """Which parts of a step are not finite, bool [1 + groups]: the loss, then groups of gradients.

    Args:
      loss: scalar.
      grads: nested dict of gradients; each of its groups (`audio`, `text`, ...) is a part.
    """
    # The sums that gradient clipping takes too; XLA computes them once.
    sizes = [loss, *(optax.tree.norm(grads[name]) for name in sorted(grads))]
    return ~jnp.isfinite(jnp.stack([jnp.asarray(size, jnp.float32) for size in sizes]))


def kept(before: TrainState, after: TrainState, parts: jax.Array) -> TrainState:
    """The state after a step, with everything but `step` as before if one of `parts` is set.

    The update is not among the parts: whoever waits for its norm has to hold all of it, which is
    memory for as many numbers as there are parameters, in every step.
    """
    good = ~parts.any()
    chosen = jax.tree.map(lambda old, new: jnp.where(good, new, old), before, after)
    return chosen.replace(step=after.step)


def as_number(parts: jax.Array, update_norm: jax.Array) -> jax.Array:
    """One int32 for the host: a bit for each of `parts`, then one for the update; 0 is all well."""
    wrong = jnp.append(parts, ~jnp.isfinite(update_norm)).astype(jnp.int32)
    return jnp.sum(wrong << jnp.arange(len(wrong), dtype=jnp.int32))


def part_names(params: Mapping[str, Any]) -> list[str]:
    """What the bits of `as_number` stand for."""
    return ["the loss", *(f"the gradients of {name}" for name in sorted(params)), "the update"]


class Guard:
    """Reports steps that were not finite, and ends a run where that is asked for.

    Attributes:
      skipped: steps of this start of the run that changed nothing.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | os.PathLike[str],
        params: Mapping[str, Any],
        last_saved: Callable[[], int | None],
    ):
        """Prepares the guard of a run.

        Args:
          config: the experiment; `train.nonfinite` is "stop" or "skip".
          workdir: receives nonfinite/step_N.json, which has all examples of such a step.
          params: the parameters or their shapes, for the names of their groups.
          last_saved: gives the step of the newest checkpoint, for the message; called by all
            processes before the run ends, it waits for a save under way, which would be lost.

        Raises:
          UserError: an unknown mode.
        """
        self._mode = config.train.nonfinite
        if self._mode not in MODES:
            raise UserError(f"train.nonfinite={self._mode!r}: must be one of {list(MODES)}")
        self._folder = epath.Path(workdir) / _FOLDER
        self._parts = part_names(params)
        self._data = config.data
        self._last_saved = last_saved
        self._in_a_row = 0
        self.skipped = 0

    def check(self, step: int, metrics: Metrics, example_id: jax.Array) -> None:
        """Looks at a step that was dispatched earlier.

        Args:
          step: its number.
          metrics: what it returned, with `nonfinite`.
          example_id: int32 [B] of its batch.

        Raises:
          UserError: the step was not finite and the mode is "stop", or it was one of too many in a
            row. Every process raises it for the same step.
        """
        bits = int(jax.device_get(metrics["nonfinite"]))
        if not bits:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.skipped += 1
        # Gradients that are finite, but steps that are not: the parameters of this run are lost.
        lost = bits == 1 << (len(self._parts) - 1)
        message = self._describe(step, bits, metrics, example_id)
        message += ". The parameters are lost" if lost else "; the step changed nothing"
        if self._mode == "skip" and self._in_a_row < MOST_IN_A_ROW and not lost:
            if jax.process_index() == 0:
                log.warning("%s. Skipped, the %d. so far", message, self.skipped)
            return
        last = self._last_saved()
        saved = "no checkpoint was written yet"
        if last is not None:
            saved = f"the newest checkpoint is of step {last}, before it"
        if lost:
            remedy = f"{saved}. Begin anew with a lower optim.lr"
        elif self._mode == "stop":
            remedy = (
                f"{saved}: the same command meets the same batch again. If these "
                "examples are at fault, --config.train.nonfinite=skip leaves such batches out; if "
                "train/grad_norm had been growing, begin anew with a lower optim.lr or a longer "
                "optim.warmup_steps"
            )
        else:
            remedy = (
                f"It is the {self._in_a_row}. in a row, so it is not the data, and {saved}. Begin "
                "anew with a lower optim.lr or a longer optim.warmup_steps"
            )
        raise UserError(f"{message}. {remedy}")

    def _describe(self, step: int, bits: int, metrics: Metrics, example_id: jax.Array) -> str:
        """Says what happened, and writes it down with all examples."""
        parts = [name for number, name in enumerate(self._parts) if bits >> number & 1]
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        ids = np.asarray(multihost_utils.process_allgather(example_id, tiled=True)).tolist()
        names = self._names(ids)
        path = self._folder / f"step_{step}.json"
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            finite = {name: v if math.isfinite(v) else repr(v) for name, v in values.items()}
            examples = [{"example_id": i, "name": name} for i, name in zip(ids, names, strict=True)]
            found = {"step": step, "parts": parts, "metrics": finite, "examples": examples}
            path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        first = list(zip(ids, names, strict=True))[:_NAMED_EXAMPLES]
        named = ", ".join(f"{i} ({name})" for i, name in first)
        more = f" and {len(ids) - _NAMED_EXAMPLES} more" if len(ids) > _NAMED_EXAMPLES else ""
        where = f" (metrics: {', '.join(wrong)})" if wrong else ""
        return (
            f"step {step}: {', '.join(parts)} not finite{where}. Its "
            f"batch holds the examples {named}{more}, all listed in {path}"
        )

    def _names(self, ids: Sequence[int]) -> list[str]:
        """What the dataset calls the examples with these numbers."""
        config = LoaderConfig.create(self._data)
        sources = config.open_training()
        ends = np.cumsum([len(source) for source in sources])
        names = []
        for i in ids:
            number = int(np.searchsorted(ends, i, side="right"))
            source = sources[number]
            example = source.without_audio(i - int(ends[number]) + len(source))
            names.append(str(example.get("id", f"example {i} of {config.train_split}")))
        return names
