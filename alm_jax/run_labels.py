"""The classes of a run and the labels of its training clips, kept in the workdir."""

from __future__ import annotations

import hashlib
import json
import os

from etils import epath
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.parallel import distributed
from input_pipeline.labels import (
    CLASSES_NAME,
    Labels,
    checked_classes,
    classes_of,
    read_classes,
    read_labels,
)
from input_pipeline.loader_config import LoaderConfig

TABLE_NAME = "labels.npz"  # so that a run that is started again need not read all records


def run_labels(config: ConfigDict, workdir: str | os.PathLike[str]) -> Labels | None:
    """Labels of the training split on every process, None where `data.labels` is empty.

    The classes are those of the workdir; in a new one `data.classes`, or else the lines of
    `data.classes_file`, or else all labels of the training and the evaluation split, sorted.

    Raises:
      UserError: labels or classes that do not fit together, or with `model.classifier.classes`.
    """
    if not config.data.get("labels"):
        return None
    folder = epath.Path(workdir)
    return Labels.from_bytes(distributed.from_first(lambda: _read(config, folder).to_bytes()))


def _read(config: ConfigDict, folder: epath.Path) -> Labels:
    data = LoaderConfig.create(config.data)
    classes = _classes(config, folder)
    head = config.model.get("classifier")
    if head is not None and head.classes != len(classes):
        raise UserError(
            f"model.classifier.classes={head.classes}, but there are {len(classes)} classes"
            f" ({', '.join(classes[:3])}, ...): set --config.model.classifier.classes="
            f"{len(classes)}, or name other classes (data.classes, data.classes_file)"
        )
    opened = data.open_training()
    facts = [[source.fingerprint for source in opened], data.labels, classes, data.unlabelled]
    mark = hashlib.sha256(json.dumps(facts).encode()).digest()
    # Before the table: what follows, and whoever loads the model, reads the classes from here.
    (folder / CLASSES_NAME).write_text("\n".join(classes) + "\n", encoding="utf-8")
    path = folder / TABLE_NAME
    if path.exists() and (kept := path.read_bytes())[: len(mark)] == mark:
        return Labels.from_bytes(kept[len(mark) :])
    labels = read_labels(opened, data.labels, classes, data.unlabelled)
    path.write_bytes(mark + labels.to_bytes())
    return labels


def _classes(config: ConfigDict, folder: epath.Path) -> tuple[str, ...]:
    data = config.data
    if (folder / CLASSES_NAME).exists():
        return read_classes(folder / CLASSES_NAME)
    if data.classes:
        return checked_classes(data.classes, "data.classes")
    if data.classes_file:
        return read_classes(data.classes_file)
    splits = dict.fromkeys(split for split in (data.train_split, data.eval_split) if split)
    reader = LoaderConfig.create(data)
    opened = [source for split in splits for source in reader.open(split)]
    return classes_of(opened, data.labels)
