"""Scalars of a run: one JSON object a line in metrics.jsonl, and TensorBoard event files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


class MetricWriter:
    """Writes scalars of steps; only the first process writes anything.

    A resumed run continues the file: lines at or after the restored step, left by a run that went
    on after its last checkpoint, are removed first, so that each step stands once.
    """

    def __init__(self, workdir: Path, *, first_step: int = 0, enabled: bool = True):
        self._file = None
        self._board: SummaryWriter | None = None
        if not enabled:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        if path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= first_step]
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            partial.replace(path)
        self._file = path.open("a", encoding="utf-8")
        purge = {"purge_step": first_step + 1} if first_step else {}
        self._board = SummaryWriter(str(workdir / "tensorboard"), **purge)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends the scalars of one step; non-finite values are written as null."""
        if self._file is None or self._board is None:
            return
        values = {name: float(value) for name, value in scalars.items()}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def names_at(workdir: Path, step: int) -> set[str]:
    """Names of the scalars that a workdir's metrics.jsonl holds for a step."""
    path = workdir / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return {name for line in lines if line["step"] == step for name in line}
