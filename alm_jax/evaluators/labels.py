"""The labels of a prepared dataset as a classification protocol sees them."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from alm_jax.errors import UserError
from alm_jax.evaluators.clips import Clips
from input_pipeline.labels import label_names
from input_pipeline.sources import open_source


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labelled clips of a split.

    Attributes:
      rows: int [k], the clips that have a label.
      classes: all classes on offer, sorted.
      of_clip: for each of these clips, its classes as places in `classes`, at least one.
      folds: int [k], the fold of each clip; 0 where the corpus has none.
      unlabelled: clips of the split without a label.
    """

    rows: np.ndarray
    classes: tuple[str, ...]
    of_clip: list[list[int]]
    folds: np.ndarray
    unlabelled: int

    def multi_hot(self) -> np.ndarray:
        """Bool [k, c], True for the classes of each labelled clip."""
        found = np.zeros((len(self.rows), len(self.classes)), bool)
        for row, own in enumerate(self.of_clip):
            found[row, own] = True
        return found

    def single(self, what: str) -> list[int]:
        """The one class of every clip.

        Raises:
          UserError: a clip has several.
        """
        for row, own in zip(self.rows, self.of_clip, strict=True):
            if len(own) > 1:
                names = ", ".join(self.classes[place] for place in own[:3])
                raise UserError(
                    f"{what} needs one label a clip, but clip {int(row)} has {len(own)} ({names}):"
                    " any-tags takes several labels a clip"
                )
        return [own[0] for own in self.of_clip]


def read_labels(clips: Clips, field: str, n_classes: int, what: str) -> Labels:
    """The labels of a split, and all classes of its dataset.

    Classes are the labels of the split; where they are fewer than the corpus has, those of the
    other splits are added, so that a class without a test clip is an answer on offer all the same.

    Args:
      clips: the split.
      field: feature that holds the label or labels.
      n_classes: classes of the corpus as published; 0 if it is nobody's published corpus.
      what: the protocol, for messages.

    Raises:
      UserError: the dataset has no such feature, or no clip has a label.
    """
    if clips.examples and field not in clips.examples[0]:
        raise UserError(
            f"{what} needs the feature {field!r}, which {clips.directory} lacks (it has "
            f"{', '.join(clips.examples[0])}): prepare the corpus from its published layout, "
            "`alm prepare --input=DIR --output=DIR`, or a table with --label-column=NAME"
        )
    each = [label_names(example[field]) for example in clips.examples]
    rows = np.asarray([row for row, own in enumerate(each) if own], np.int64)
    if not rows.size:
        raise UserError(
            f"{what} needs labels, but none of the {len(clips)} clips of {clips.directory}, split "
            f"{clips.split!r}, has one: prepare the corpus from its published layout, or a table "
            "with --label-column=NAME"
        )
    found = {name for own in each for name in own}
    for split in _other_splits(clips) if len(found) < n_classes or not n_classes else ():
        source = open_source(clips.directory, split)
        listed = tqdm(source.metadata(), f"labels of {split}", len(source), delay=2, leave=False)
        found.update(name for example in listed for name in label_names(example[field]))
    classes = tuple(sorted(found))
    if len(classes) < 2:
        raise UserError(
            f"{what}: all clips of {clips.directory} have the label {classes[0]!r}, so any model "
            "is right always: there must be two classes at least"
        )
    place = {name: index for index, name in enumerate(classes)}
    return Labels(
        rows,
        classes,
        [[place[name] for name in each[row]] for row in rows],
        np.asarray([int(clips.examples[row].get("fold", 0)) for row in rows], np.int64),
        len(clips) - len(rows),
    )


def _other_splits(clips: Clips) -> list[str]:
    splits = tfds.builder_from_directory(clips.directory).info.splits
    return [name for name, info in splits.items() if info.num_examples and name != clips.split]
