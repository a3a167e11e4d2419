"""What is in a prepared dataset: one pass over every clip of every split, counted."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from input_pipeline.cleaning import script_of
from input_pipeline.sources import Source

# A field with more different values (ids) is not counted further.
_DISTINCT = 50_000
_WORD = re.compile(r"\w+")


@dataclasses.dataclass
class Field:
    """Values of a text field, or of a list of them.

    Attributes:
      counts: value -> clips; "" for none.
      many: there are more different values than are counted.
    """

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    many: bool = False

    def add(self, values: Iterable[str]) -> None:
        """Counts the values of one clip."""
        if not self.many:
            self.counts.update(values)
            self.many = len(self.counts) > _DISTINCT

    @property
    def varies(self) -> bool:
        """Whether clips share its values at all: an id does not."""
        total = sum(self.counts.values())
        return not self.many and (len(self.counts) <= 20 or len(self.counts) < 0.5 * total)


@dataclasses.dataclass
class Split:
    """One split.

    Attributes:
      name: its name.
      fingerprint: see `sources.Source.fingerprint`.
      seconds: float64 [n], length of every clip.
      peaks: float64 [n], dB of full scale; -inf for silence.
      levels: float64 [n], root mean square, dB of full scale.
      clipped: float64 [n], share of samples at full scale.
      captions: caption -> how often.
      fields: name -> its values.
    """

    name: str
    fingerprint: str
    seconds: np.ndarray
    peaks: np.ndarray
    levels: np.ndarray
    clipped: np.ndarray
    captions: Counter[str]
    fields: dict[str, Field]

    @property
    def hours(self) -> float:
        """Of sound."""
        return float(self.seconds.sum() / 3600)


def survey(sources: Sequence[Source], sample_rate: int) -> list[Split]:
    """Reads every clip of some splits once.

    Args:
      sources: the splits.
      sample_rate: Hz.
    """
    total = sum(map(len, sources))
    with tqdm(total=total, desc="reading", unit="clip", delay=2.0, file=sys.stderr) as bar:
        return [_survey(source, sample_rate, bar) for source in sources]


def _survey(source: Source, sample_rate: int, bar: tqdm) -> Split:
    numbers = np.zeros((len(source), 4))
    captions: Counter[str] = Counter()
    fields: dict[str, Field] = {}
    for position, example in enumerate(source):
        numbers[position] = _levels(example.pop("audio"), sample_rate)
        texts = example.pop("text")
        texts = (texts,) if isinstance(texts, str) else texts
        captions.update(texts)
        for name, value in example.items():
            values = value if isinstance(value, tuple) else (str(value),)
            fields.setdefault(name, Field()).add(values or ("",))
        bar.update()
    seconds, peaks, levels, clipped = numbers.T
    return Split(
        source.split, source.fingerprint, seconds, peaks, levels, clipped, captions, fields
    )


def _levels(pcm: np.ndarray, sample_rate: int) -> tuple[float, float, float, float]:
    """Seconds, peak and level in dB, and the share of samples at full scale."""
    if not len(pcm):
        return 0.0, -np.inf, -np.inf, 0.0
    size = np.abs(pcm.astype(np.float32))
    with np.errstate(divide="ignore"):
        peak = 20 * np.log10(size.max() / 32767)
        level = 10 * np.log10(np.square(size).mean(dtype=np.float64) / 32767**2)
    return len(pcm) / sample_rate, float(peak), float(level), float((size >= 32766).mean())


def words(captions: Counter[str]) -> Counter[str]:
    """Words of captions, lower case, each as often as it stands there."""
    found: Counter[str] = Counter()
    for caption, count in captions.items():
        for word in _WORD.findall(caption.lower()):
            found[word] += count
    return found


def lengths(captions: Counter[str]) -> np.ndarray:
    """Number of words of every caption, int64 [n]."""
    sizes = [len(_WORD.findall(caption)) for caption in captions]
    return np.repeat(np.array(sizes, np.int64), list(captions.values()))


def scripts(captions: Counter[str]) -> Counter[str]:
    """Writing systems: that of most letters of each caption, `none` without letters."""
    found: Counter[str] = Counter()
    for caption, count in captions.items():
        found[script_of(caption)] += count
    return found
