"""Class labels of clips: names in a dataset -> rows of a batch, and how rare the classes are.

The names of all clips are read once, at the start of a run (with all bytes of the split, since that
is how records are stored); what is kept is a few bytes a clip. So every label that is no class, and
every clip without one, is known before the first step.

Shapes: n examples (in a mixture, counted on over the sources), Y classes, k labels of all clips.
"""

import csv
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath
from tqdm import tqdm

from alm_jax.errors import UserError, did_you_mean

CLASSES_NAME = "classes.txt"  # of a run: a name a line, in the order of the classifier's outputs
UNLABELLED = ("error", "drop", "keep")
_RARE = 0.01  # added to the number of clips of a class, as AudioMAE does
_SHOWN = 5


class Examples(Protocol):
    """What labels are read from: a `Source`, or a split whose features are in memory."""

    @property
    def directory(self) -> str:
        """The dataset's folder."""
        ...

    @property
    def split(self) -> str:
        """The split's name."""
        ...

    def __len__(self) -> int: ...

    def metadata(self) -> Iterator[dict[str, Any]]:
        """Yields every example in order without its audio."""
        ...


@dataclasses.dataclass(frozen=True)
class Labels:
    """Which classes each example has.

    Attributes:
      classes: the Y names.
      first: int64 [n + 1]; example i has the classes `item[first[i] : first[i + 1]]`.
      item: int32 [k].
      kept: int64 [m], the examples that take part, rising.
    """

    classes: tuple[str, ...]
    first: np.ndarray
    item: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    def rows(self, examples: Iterable[int]) -> np.ndarray:
        """Bool [B, Y], True for the classes of each example; all False for a negative number."""
        examples = list(examples)
        found = np.zeros((len(examples), len(self.classes)), bool)
        for row, example in enumerate(examples):
            if example >= 0:
                found[row, self.item[self.first[example] : self.first[example + 1]]] = True
        return found

    def counts(self) -> np.ndarray:
        """Int64 [Y]: clips of each class."""
        return np.bincount(self.item, minlength=len(self.classes))

    def weights(self) -> np.ndarray:
        """Float64 [n]: a clip's weight is the sum over its classes of 1 / (their number of clips).

        Drawing in proportion to it, every class comes about as often as any other. Source: AudioMAE
        `dataset/audioset/gen_weight.py`, whose common factor of 1000 changes nothing.
        """
        of_label = 1.0 / (self.counts() + _RARE)[self.item]
        total = np.concatenate([[0.0], np.cumsum(of_label)])
        # Not differences of that running sum alone: a clip without a class must weigh exactly 0.
        return np.where(
            np.diff(self.first) > 0, total[self.first[1:]] - total[self.first[:-1]], 0.0
        )

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        file = io.BytesIO()
        names = np.asarray(self.classes)
        np.savez(file, classes=names, first=self.first, item=self.item, kept=self.kept)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Labels":
        """The inverse of `to_bytes`."""
        with np.load(io.BytesIO(data)) as file:
            classes = tuple(map(str, file["classes"].tolist()))
            return cls(classes, file["first"], file["item"], file["kept"])


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names of a file: one a line, or AudioSet's `class_labels_indices.csv`.

    Raises:
      UserError: the file is not there, is empty, or names a class twice.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise UserError(f"data.classes_file={os.fspath(path)}: there is no such file")
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    table = csv.DictReader(lines)
    if lines and "display_name" in (table.fieldnames or ()):
        names = tuple(row["display_name"] for row in table)
    else:
        names = tuple(line.strip() for line in lines if line.strip())
    return checked_classes(names, f"data.classes_file={os.fspath(path)}")


def checked_classes(names: Sequence[str], origin: str) -> tuple[str, ...]:
    """The names, if they can be classes.

    Raises:
      UserError: fewer than one, or one twice.
    """
    if not names:
        raise UserError(f"{origin} names no class")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{origin} names {len(twice)} classes twice, such as {twice[0]!r}")
    return tuple(names)


def label_names(value: Any) -> tuple[str, ...]:
    """The labels in a feature's value: a text, or a list of them; empty ones do not count."""
    names = (value,) if isinstance(value, str) else tuple(value)
    return tuple(dict.fromkeys(name for name in names if name))


def classes_of(opened: Sequence[Examples], feature: str) -> tuple[str, ...]:
    """All labels that occur, sorted.

    Raises:
      UserError: there is no such feature, or no label in it.
    """
    found = {name for names in _each(opened, feature, "classes") for name in names}
    where = ", ".join(f"{source.directory} ({source.split})" for source in opened)
    return checked_classes(sorted(found), f"data.labels={feature!r} of {where}")


def read_labels(
    opened: Sequence[Examples], feature: str, classes: Sequence[str], unlabelled: str
) -> Labels:
    """Reads the labels of every example.

    Args:
      opened: the sources of a split.
      feature: name of the feature that holds them, a text or a list of texts.
      classes: the Y names.
      unlabelled: what becomes of clips without a label. "error": nothing; each must have one, and
        every label must be a class. "drop" leaves them out, "keep" keeps them as clips to which no
        class applies; both ignore labels that are no class.

    Raises:
      UserError: an unknown label, a clip without one, no clip left; all with the remedy.
    """
    if unlabelled not in UNLABELLED:
        raise UserError(f"data.unlabelled={unlabelled!r}: must be one of {UNLABELLED}")
    number = {name: index for index, name in enumerate(classes)}
    first, item, unknown, bare = [0], [], Counter[str](), []
    for example, names in enumerate(_each(opened, feature, "labels")):
        known = [number[name] for name in names if name in number]
        unknown.update(name for name in names if name not in number)
        if not known:
            bare.append(example)
        item += known
        first.append(len(item))
    where = ", ".join(f"{source.directory} ({source.split})" for source in opened)
    remedy = "or data.unlabelled='drop' (such clips are left out) or 'keep' (no class applies)"
    if unlabelled == "error" and unknown:
        shown = ", ".join(f"{name!r} ({count})" for name, count in unknown.most_common(_SHOWN))
        close = did_you_mean(unknown.most_common(1)[0][0], classes)
        raise UserError(
            f"{where}: {len(unknown)} labels in {feature!r} are none of the {len(classes)} classes:"
            f" {shown}{close}. Give their list as data.classes_file, {remedy}"
        )
    if unlabelled == "error" and bare:
        raise UserError(
            f"{where}: {len(bare)} of {len(first) - 1} clips have no label in {feature!r}, the"
            f" first is number {bare[0]}; label them, {remedy}"
        )
    kept = np.arange(len(first) - 1)
    if unlabelled == "drop":
        kept = np.delete(kept, bare)
    if not item:
        raise UserError(f"{where}: no clip has a label in {feature!r} that is one of the classes")
    return Labels(tuple(classes), np.asarray(first, np.int64), np.asarray(item, np.int32), kept)


def _each(opened: Sequence[Examples], feature: str, what: str) -> Iterator[tuple[str, ...]]:
    """The labels of every example of all sources, in order."""
    total = sum(map(len, opened))
    with tqdm(total=total, desc=f"reading {what}", unit="clip", delay=2.0) as bar:
        for source in opened:
            for example in source.metadata():
                if feature not in example:
                    raise UserError(
                        f"{source.directory} has no feature {feature!r}, which data.labels names;"
                        f" it has {', '.join(sorted(example))}{did_you_mean(feature, example)}"
                    )
                yield label_names(example[feature])
                bar.update()
