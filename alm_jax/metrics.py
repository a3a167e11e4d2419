"""Scalars of a run: one JSON object a line in metrics.jsonl, and TensorBoard event files."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from alm_jax.errors import UserError

log = logging.getLogger("alm_jax")

_NAME = "metrics.jsonl"
_UPLOAD_SECONDS = 60.0


class MetricWriter:
    """Writes scalars of steps; only the first process writes anything.

    A resumed run continues the file: lines after the restored step, left by a run that went on
    after its last checkpoint, are removed first, so that each step stands once. A run that begins
    anew, at step 0, removes all.

    A bucket (`gs://...`) knows no appending: there, files grow in a temporary folder and are
    uploaded about once a minute, whenever `flush` is called, and at the end.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, first_step: int = 0, enabled: bool = True
    ):
        self._file = None
        self._board: _Board | None = None
        self._remote: epath.Path | None = None
        if not enabled:
            return
        target = epath.Path(workdir)
        target.mkdir(parents=True, exist_ok=True)
        self._folder = Path(target)
        if "://" in os.fspath(target):
            self._remote = target
            self._temporary = tempfile.TemporaryDirectory(prefix="alm_metrics_")
            self._folder = Path(self._temporary.name)
            self._uploaded = time.monotonic()
        path = target / _NAME
        if path.exists():
            lines = read_metrics(path) if first_step else []
            kept = [line for line in lines if line["step"] <= first_step]
            partial = self._folder / (_NAME + ".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            partial.replace(self._folder / _NAME)
        self._file = (self._folder / _NAME).open("a", encoding="utf-8")
        self._board = _Board(self._folder / "tensorboard", first_step)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends the scalars of one step; non-finite values are written as null.

        Raises:
          UserError: the file cannot be written.
        """
        if self._file is None or self._board is None:
            return
        values = {name: float(value) for name, value in scalars.items()}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._file.name} cannot be written: {error.strerror}. Make room; the same "
                "command goes on from the last checkpoint"
            ) from error
        self._board.write(step, values)
        if self._remote is not None and time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hands everything on to a bucket; a folder has it already."""
        if self._remote is None or self._board is None:
            return
        self._board.flush()
        for path in self._folder.rglob("*"):
            if path.is_file():
                there = self._remote / path.relative_to(self._folder).as_posix()
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(path.read_bytes())
        self._uploaded = time.monotonic()

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._file is not None and self._board is not None:
            with contextlib.suppress(OSError):  # `write` has raised it, for the same line
                self._file.close()
            self.flush()
            self._board.close()
            if self._remote is not None:
                self._temporary.cleanup()


class _Board:
    """TensorBoard's events. A full disk ends them with a warning: metrics.jsonl has the same."""

    def __init__(self, folder: Path, first_step: int):
        purge = {"purge_step": first_step + 1} if first_step else {}
        # Its queue holds 10 by default, and once its thread has died of a full disk, who puts an
        # eleventh event into it waits for ever.
        self._writer: Any = SummaryWriter(str(folder), max_queue=2**20, **purge)
        self._folder = folder

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the scalars of one step."""
        if self._writer is not None and not self._events()._worker.is_alive():
            self._give_up("its thread has died")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes what there is."""
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._give_up(str(error))

    def close(self) -> None:
        """Writes the rest and ends the thread."""
        self.flush()
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(str(error))

    def _events(self) -> Any:
        return self._writer.file_writer.event_writer

    def _give_up(self, reason: str) -> None:
        log.warning("%s lacks its end (%s); metrics.jsonl beside it has all", self._folder, reason)
        events = self._events()
        if events._worker.is_alive():
            events._worker.stop()
        # Otherwise Python tries both once more at its end: it prints a stack, and waits for ever.
        events._closed = True
        events._event_queue.cancel_join_thread()
        self._writer = None


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines = []
    for text in epath.Path(path).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def names_at(workdir: str | os.PathLike[str], step: int) -> set[str]:
    """Names of the scalars that a workdir's metrics.jsonl holds for a step."""
    path = epath.Path(workdir) / _NAME
    lines = read_metrics(path) if path.exists() else []
    return {name for line in lines if line["step"] == step for name in line}
