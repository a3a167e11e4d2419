"""The fields of `config.data` that the loader reads, checked, and the datasets they name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alm_jax.errors import UserError
from input_pipeline import sources

_LOWEST = {
    "batch_size": 1,
    "sample_rate": 1,
    "max_text_length": 2,
    "num_workers": 0,
    "read_threads": 0,
    "prefetch_batches": 1,
}
_UNITS = ("share", "epochs")
SAMPLING = ("uniform", "balanced")


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What the loader takes from `config.data`; other fields there are not its business.

    Attributes:
      dir: folder of a prepared dataset (`sources.open_source`). With a mixture, what evaluation
        reads (by default the first of the mixture).
      mixture: pairs (folder, weight) to train on instead of `dir`: a batch holds the sources in
        proportion to `shares`, each going through its own epochs.
      mixture_unit: what a weight is, "share" of the batch, or number of "epochs" of its source for
        one of a source with weight 1 (all 1: as if they were one dataset).
      mixture_temperature: above 1 moves the shares towards equal ones, p ** (1 / temperature).
      generated_probability: chance that a caption of `text_generated` is drawn instead of one of
        `text`, where a clip has both (Cacophony's `synthetic_prob`, `src/caco/dataset.py`).
      concat_probability: chance that a second clip of the source follows the first, and its
        caption that caption (`concatenate`).
      train_split: name of the split, the same in every source of a mixture.
      batch_size: global, in training.
      sample_rate: Hz; must be the dataset's.
      max_seconds: longer clips are cropped, at random in training, to the front in evaluation.
      max_text_length: L.
      num_workers: processes that build batches; 0 builds them in this one, which is enough up to
        several thousand clips a second.
      read_threads: threads that build batches, in each process. More than the cores is slower.
      prefetch_batches: batches read ahead, in each process; each takes B * S * 2 bytes.
      text_sample_alpha: subword sampling in training (`Tokenizer.encode`); 0 is off.
      labels: feature with the class names of a clip; "" for batches without labels.
      unlabelled: what becomes of clips without a label (`labels.read_labels`).
      sampling: "uniform", each epoch holding every clip once; or "balanced", clips drawn by the
        rarity of their classes (`Labels.weights`), with replacement.
      mixup_probability: chance that a training clip comes with a second one to be mixed with,
        drawn uniformly from its source.
    """

    dir: str = ""
    mixture: tuple[tuple[str, float], ...] = ()
    mixture_unit: str = "share"
    mixture_temperature: float = 1.0
    generated_probability: float = 0.0
    concat_probability: float = 0.0
    train_split: str = "train"
    batch_size: int = 256
    sample_rate: int = 16000
    max_seconds: float = 10.0
    max_text_length: int = 64
    num_workers: int = 0
    read_threads: int = 2
    prefetch_batches: int = 2
    text_sample_alpha: float = 0.0
    labels: str = ""
    unlabelled: str = "error"
    sampling: str = "uniform"
    mixup_probability: float = 0.0

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            value: Any = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                raise UserError(f"config.data.{name}={value!r}: must be a whole number >= {lowest}")
        seconds: Any = self.max_seconds
        if not isinstance(seconds, int | float) or self.num_samples < 1:
            raise UserError(
                f"config.data.max_seconds={self.max_seconds!r}: must be a number of seconds, at"
                f" least one sample at {self.sample_rate} Hz"
            )
        if self.mixture_unit not in _UNITS:
            raise UserError(
                f"config.data.mixture_unit={self.mixture_unit!r}: must be one of {_UNITS}"
            )
        if not self.mixture_temperature > 0:
            raise UserError(
                f"config.data.mixture_temperature={self.mixture_temperature}: must be above 0"
            )
        if any(weight <= 0 for _, weight in self.mixture):
            raise UserError(f"config.data.mixture={self.mixture!r}: weights must be above 0")
        if self.text_sample_alpha < 0:
            raise UserError(f"config.data.text_sample_alpha={self.text_sample_alpha}: must be >= 0")
        if self.sampling not in SAMPLING:
            raise UserError(f"config.data.sampling={self.sampling!r}: must be one of {SAMPLING}")
        if self.sampling == "balanced" and not self.labels:
            raise UserError("config.data.sampling='balanced' needs labels: set config.data.labels")
        for name in ("mixup", "generated", "concat"):
            value = getattr(self, f"{name}_probability")
            if not 0.0 <= value <= 1.0:
                raise UserError(f"config.data.{name}_probability={value}: must lie in 0..1")

    @classmethod
    def create(cls, data: "Mapping[str, Any] | LoaderConfig") -> "LoaderConfig":
        """Takes the fields out of `config.data` (ConfigDict or dict); absent ones have defaults.

        Raises:
          UserError: names the field, its value and what it should be.
        """
        if isinstance(data, LoaderConfig):
            return data
        names = [field.name for field in dataclasses.fields(cls)]
        given = {name: data[name] for name in names if data.get(name) is not None}
        try:
            given["mixture"] = tuple((str(d), float(w)) for d, w in given.get("mixture") or ())
        except (TypeError, ValueError) as error:
            raise UserError(
                f"config.data.mixture={given['mixture']!r}: must be pairs of a folder and a weight"
            ) from error
        return cls(**given)

    @property
    def num_samples(self) -> int:
        """S: samples of a full-length row."""
        return round(self.max_seconds * self.sample_rate)

    def shares(self, sizes: Sequence[int]) -> list[float]:
        """What share of a batch each source of the mixture has; `sizes` are numbers of clips."""
        weights = np.array([weight for _, weight in self.mixture])
        if self.mixture_unit == "epochs":
            weights *= sizes
        weights = (weights / weights.sum()) ** (1.0 / self.mixture_temperature)
        return (weights / weights.sum()).tolist()

    def open_training(self) -> list[sources.Source]:
        """Opens what is trained on: `train_split` of `dir`, or of every source of the mixture."""
        return self._open(self._directories(), self.train_split)

    def open(self, split: str) -> list[sources.Source]:
        """Opens `split` of `dir`, where evaluation reads; errors as `open_training`."""
        return self._open([self.dir or self._directories()[0]], split)

    def _directories(self) -> list[str]:
        # Only now: a config of a model that others have trained names no data.
        if not self.dir and not self.mixture:
            raise UserError(
                "config.data needs dir (one dataset) or mixture (pairs of folder and weight); both"
                " are empty"
            )
        return [directory for directory, _ in self.mixture] or [self.dir]

    def _open(self, directories: Sequence[str], split: str) -> list[sources.Source]:
        """Opens a split of some datasets and checks that their sample rate is `sample_rate`.

        Raises:
          UserError: no such dataset or split, or another sample rate.
        """
        opened = []
        for directory in directories:
            source = sources.open_source(directory, split)
            if source.sample_rate not in (None, self.sample_rate):
                raise UserError(
                    f"{source.directory} holds audio at {source.sample_rate} Hz, but"
                    f" config.data.sample_rate={self.sample_rate}; change the config, or build the"
                    " dataset at that rate"
                )
            opened.append(source)
        return opened


def host_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """Returns the rows of the global batch that one host builds.

    They are contiguous, in the order of the hosts: so does `jax.make_array_from_process_local_data`
    put the shares together for a batch axis laid out in order of process.

    Raises:
      UserError: the hosts cannot share the batch evenly.
      ValueError: `process_index` is not one of the hosts.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} with process_count={process_count}")
    share, rest = divmod(batch_size, process_count)
    if share < 1 or rest:
        choices = [process_count * n for n in (share, share + 1) if n > 0]
        raise UserError(
            f"batch_size={batch_size} cannot be shared evenly by {process_count} hosts; take"
            f" {' or '.join(map(str, choices))}"
        )
    return range(process_index * share, (process_index + 1) * share)
