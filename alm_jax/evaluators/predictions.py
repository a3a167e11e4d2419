"""What a model answered, in files that other programs read."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write_captions(
    path: str | os.PathLike[str],
    ids: Sequence[str],
    generated: Sequence[str],
    references: Sequence[Sequence[str]],
) -> None:
    """Generated captions as aac-metrics reads them, for SPICE, SPIDEr and FENSE.

    Columns: `file_name`, `caption_predicted` (as DCASE's submissions), and `captions`, the list of
    references in Python's notation:

        python -m aac_metrics.eval -i predictions.csv

    Args:
      path: the file.
      ids: of the clips.
      generated: a caption each.
      references: the true captions of each.
    """
    rows = zip(ids, generated, (repr(list(own)) for own in references), strict=True)
    _write(path, ("file_name", "caption_predicted", "captions"), rows)


def write_answers(
    path: str | os.PathLike[str], ids: Sequence[str], labels: Sequence[str], answers: Sequence[str]
) -> None:
    """The label and the answer of every clip: `id`, `label`, `answer`, `right`."""
    rows = (
        (clip, label, answer, int(label == answer))
        for clip, label, answer in zip(ids, labels, answers, strict=True)
    )
    _write(path, ("id", "label", "answer", "right"), rows)


def _write(
    path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
