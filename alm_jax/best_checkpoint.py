"""The best checkpoint of a run by a named metric, beside the newest ones that it resumes from.

`train.keep_best = "eval/validation/audio_to_text/R@10"` keeps, in WORKDIR/best, the parameters at
which an evaluation during training gave the best value so far. WORKDIR/best is a model folder like
the workdir: `alm eval --model=WORKDIR/best`, `alm export --model=WORKDIR/best`,
`init_from.workdir=WORKDIR/best`. It holds no optimiser state, and resuming does not read its
parameters, so that a resumed run is the same with it and without.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from alm_jax.checkpoints import Checkpoints
from alm_jax.errors import UserError, did_you_mean
from alm_jax.parallel import distributed
from alm_jax.train_state import TrainState
from input_pipeline.labels import CLASSES_NAME
from input_pipeline.text import FILE_NAME

log = logging.getLogger("alm_jax")

FOLDER = "best"
RECORD = "best.json"  # metric, value and step
_LOWER_IS_BETTER = ("loss", "median_rank")
_MODEL_FILES = ("config.json", FILE_NAME, CLASSES_NAME)


class BestCheckpoint:
    """Keeps the best parameters; does nothing where `train.keep_best` is empty."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | os.PathLike[str],
        metadata: Mapping[str, Any],
        *,
        resumed: bool,
    ):
        """Reads the best value so far.

        Args:
          config: of the run.
          workdir: of the run.
          metadata: what checkpoints say of the run.
          resumed: whether the run goes on; what a run from nothing finds is another one's.

        Raises:
          UserError: the metric cannot be one of the run's evaluation.
        """
        self.metric = str(config.train.keep_best)
        if not self.metric:
            return
        split = config.data.eval_split
        if not split or not self.metric.startswith(f"eval/{split}"):
            raise UserError(
                f"config.train.keep_best={self.metric!r}: "
                + (f"must be a metric of the evaluation, eval/{split}/..., " if split else "")
                + ("such as " + f"eval/{split}/loss" if split else "data.eval_split is empty")
            )
        self._workdir = epath.Path(workdir)
        self._folder = self._workdir / FOLDER
        self._metadata = dict(metadata)
        record = distributed.from_first(lambda: self._start(resumed))
        known = json.loads(record) if record else {}
        self._value: float | None = known.get("value")
        self._step = int(known.get("step", -1))

    def _start(self, resumed: bool) -> bytes:
        """The record of this run's metric; removes what another run or metric left."""
        path = self._folder / RECORD
        if resumed and path.exists():
            record = path.read_bytes()
            if json.loads(record)["metric"] == self.metric:
                return record
        if self._folder.exists():
            self._folder.rmtree()
        return b""

    def see(self, state: TrainState, scalars: Mapping[str, float]) -> None:
        """Saves the parameters if they are the best so far; returns when they are on disk.

        Args:
          state: that was evaluated.
          scalars: of the evaluation, the same on all processes.

        Raises:
          UserError: the metric is not among them.
        """
        if not self.metric:
            return
        if self.metric not in scalars:
            raise UserError(
                f"config.train.keep_best={self.metric!r} is no metric of this run's evaluation"
                f"{did_you_mean(self.metric, scalars)}; it has {', '.join(sorted(scalars))}"
            )
        value = scalars[self.metric]
        # One process decides: the others might differ in the last digit.
        step = int(state.step)
        if not distributed.from_first(lambda: b"yes" if self._is_better(step, value) else b""):
            return
        if jax.process_index() == 0 and (self._folder / "checkpoints").exists():
            (self._folder / RECORD).unlink(missing_ok=True)
        saves = Checkpoints(self._folder, keep=1)
        parameters = TrainState(
            step=state.step,
            params=state.params if state.ema is None else state.ema,
            opt_state={},
            ema=None,
            stats=state.stats,
        )
        try:
            metadata = {**self._metadata, "metric": self.metric, "value": value}
            saves.save(step, parameters, {"next_step": step}, metadata, force=True)
        finally:
            saves.close()
        self._value, self._step = value, step
        distributed.from_first(lambda: self._finish(step, value))
        log.info("best so far: %s %.4g at step %d, in %s", self.metric, value, step, self._folder)

    def _is_better(self, step: int, value: float) -> bool:
        # A run that was killed and set back comes by the best step again.
        if not math.isfinite(value) or step <= self._step:
            return False
        if self._value is None:
            return True
        lower = self.metric.endswith(_LOWER_IS_BETTER)
        return value < self._value if lower else value > self._value

    def _finish(self, step: int, value: float) -> bytes:
        """Makes the folder a model's, and writes the record last: with it, the folder is whole."""
        for name in _MODEL_FILES:
            if (self._workdir / name).exists():
                (self._workdir / name).copy(self._folder / name, overwrite=True)
        record = {"metric": self.metric, "value": value, "step": step}
        (self._folder / RECORD).write_text(json.dumps(record) + "\n")
        return b"done"
