"""What a batch holds: functions from a step's number to this host's rows, and nothing else.

A batch is a dict of numpy arrays; B rows are this host's share, S and L are static.
  audio         int16 [B, S]  zero padded; S = round(max_seconds * sample_rate)
  audio_length  int32 [B]     valid samples, at least 1
  text          int32 [B, L]  token ids, zero padded
  text_mask     bool  [B, L]  True on bos, pieces and eos
  example_id    int32 [B]     index in the split; in a mixture, counted on over the sources
Where there are labels, batches add
  labels        bool  [B, Y]  True for the classes of the clip
With a chance of mixup, training batches add a second clip, like the first:
  mix_audio     int16 [B, S]
  mix_length    int32 [B]     0 on rows that stay as they are
  mix_labels    bool  [B, Y]  where there are labels
Evaluation batches add
  _mask         bool  [B]     False on padding rows: one silent sample, an empty caption, id -1
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import grain
import numpy as np

from input_pipeline.concatenate import crop, join_audio, join_captions
from input_pipeline.labels import Labels
from input_pipeline.loader_config import LoaderConfig
from input_pipeline.shuffle import shuffled_visits, weighted_visits
from input_pipeline.sources import Source

Batch = dict[str, np.ndarray]
_MIXUP, _GENERATED, _CONCAT = 1, 2, 3  # streams of draws beside the first


class Encoder(Protocol):
    """What the loader asks of a tokenizer (`input_pipeline.text.Tokenizer` is one)."""

    def encode(
        self, caption: str, max_length: int, *, sample_alpha: float = 0.0, seed: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids int32 [L] and mask bool [L]."""
        ...


class TrainBatches:
    """Step number -> this host's rows of that step's training batch.

    Step n of a global batch of B takes positions n*B ... n*B + B - 1 of an endless shuffled order.
    Order, crop, caption draw and subword draw depend on (seed, source, epoch, example) alone, so
    that hosts, workers and restarts cannot change them. Pickles to worker processes.
    """

    def __init__(
        self,
        config: LoaderConfig,
        opened: Sequence[Source],
        tokenizer: Encoder,
        seed: int,
        rows: range,
        labels: Labels | None = None,
    ) -> None:
        self._config = config
        self._sources = opened
        self._offsets = np.cumsum([0, *map(len, opened)]).tolist()
        self._tokenizer = tokenizer
        self._rows = rows
        self._labels = labels
        self._kept = [_kept(labels, *ends) for ends in pairwise(self._offsets)]
        # A hash of the seed: grain adds the epoch to its shuffle seed, so that seed 1 would
        # otherwise begin with the second epoch of seed 0.
        words = np.random.SeedSequence(seed % 2**64).generate_state(2 + len(opened), np.uint32)
        self._key = words[:2].astype(np.uint64)
        orders = [
            self._visits(number, seed=int(words[2 + number])) for number in range(len(opened))
        ]
        self._order = orders[0]
        if len(orders) > 1:
            shares = config.shares([len(kept) for kept in self._kept])
            self._order = grain.MapDataset.mix(orders, shares)

    def _visits(self, number: int, *, seed: int) -> grain.MapDataset:
        """The endless order of one source, of places in `kept`."""
        if self._config.sampling == "balanced":
            assert self._labels is not None
            weights = self._labels.weights()[self._offsets[number] : self._offsets[number + 1]]
            return weighted_visits(number, weights[np.asarray(self._kept[number])], seed=seed)
        return shuffled_visits(number, len(self._kept[number]), seed=seed)

    def __call__(self, step: int) -> Batch:
        """Builds one batch; a pure function of `step`."""
        config = self._config
        batch = _empty_batch(len(self._rows), config.num_samples, config.max_text_length)
        mixed = np.full(len(self._rows), -1)  # example whose sound is mixed into each row
        if config.mixup_probability:
            batch["mix_audio"] = np.zeros_like(batch["audio"])
            batch["mix_length"] = np.zeros_like(batch["audio_length"])
        second = np.full(len(self._rows), -1)  # example whose sound follows each row's
        first = step * config.batch_size
        for row, position in enumerate(self._rows):
            number, epoch, place = self._order[first + position]
            index = int(self._kept[number][place])
            # A counter-based generator: every (source, epoch, example) has a stream of its own.
            counter = (index, epoch, number)
            rng = self._stream(0, counter)
            pieces, caption, second[row] = self._pair(rng, number, index, counter)
            text, mask = self._tokenizer.encode(
                caption, config.max_text_length, sample_alpha=config.text_sample_alpha, seed=rng
            )
            _fill_row(batch, row, pieces, text, mask, self._offsets[number] + index)
            if config.mixup_probability:
                mixed[row] = self._mix(batch, row, number, counter)
        if self._labels is not None:
            batch["labels"] = self._labels.rows(batch["example_id"])
            if config.concat_probability:
                batch["labels"] |= self._labels.rows(second)
            if config.mixup_probability:
                batch["mix_labels"] = self._labels.rows(mixed)
        return batch

    def _pair(
        self, rng: np.random.Generator, number: int, index: int, counter: tuple[int, int, int]
    ) -> tuple[list[np.ndarray], str, int]:
        """A row's sound, its caption, and the example that follows in it (-1: none)."""
        config = self._config
        audio, captions, generated = self._sources[number].audio_and_texts(index)
        place = rng.random()
        caption = _drawn(rng, captions)
        if config.generated_probability and generated:
            draw = self._stream(_GENERATED, counter)
            if draw.random() < config.generated_probability:
                caption = _drawn(draw, generated)
        if not config.concat_probability:
            return [crop(audio, config.num_samples, place)], caption, -1
        draw = self._stream(_CONCAT, counter)
        if draw.random() >= config.concat_probability:
            return [crop(audio, config.num_samples, place)], caption, -1
        kept = self._kept[number]
        other = int(kept[int(draw.random() * len(kept))])
        following, its_captions = self._sources[number].audio_and_captions(other)
        pieces = join_audio(audio, following, config.num_samples, (place, draw.random()))
        caption = join_captions(caption, _drawn(draw, its_captions), draw.random())
        return pieces, caption, int(self._offsets[number] + other)

    def _mix(self, batch: Batch, row: int, number: int, counter: tuple[int, int, int]) -> int:
        """Perhaps gives a row a second clip; returns its example id, or -1."""
        rng = self._stream(_MIXUP, counter)
        if rng.random() >= self._config.mixup_probability:
            return -1
        kept = self._kept[number]
        index = int(kept[int(rng.random() * len(kept))])
        audio, _ = self._sources[number].audio_and_captions(index)
        piece = crop(audio, self._config.num_samples, rng.random())
        batch["mix_length"][row] = _fill_audio(batch["mix_audio"][row], [piece])
        return int(self._offsets[number] + index)

    def _stream(self, number: int, counter: tuple[int, int, int]) -> np.random.Generator:
        """Draws of their own for one purpose, so that it changes nothing else."""
        return np.random.Generator(np.random.Philox(counter=[number, *counter], key=self._key))


class EvalBatches:
    """Step number -> this host's rows of that step's evaluation batch.

    `len()` is the number of steps, the same on every host. Clips are grouped by the shortest of
    `bucket_samples` that holds them, ascending; within a group they keep the order of the split.
    """

    def __init__(
        self,
        config: LoaderConfig,
        opened: Sequence[Source],
        tokenizer: Encoder,
        batch_size: int,
        rows: range,
        bucket_samples: Sequence[int],
        labels: Labels | None = None,
    ) -> None:
        self._config = config
        self._sources = opened
        self._offsets = np.cumsum([0, *map(len, opened)])
        self._tokenizer = tokenizer
        self._num_rows = len(rows)
        self._labels = labels
        kept = np.asarray(_kept(labels, 0, int(self._offsets[-1])))
        self.num_examples = len(kept)
        longest = config.num_samples
        sizes = np.unique([min(samples, longest) for samples in [*bucket_samples, longest]])
        if len(sizes) > 1:
            lengths = np.concatenate([source.lengths for source in opened])
            group = np.searchsorted(sizes, np.minimum(lengths, longest))[kept]
        else:  # no need to read the split for its lengths
            group = np.zeros(len(kept), np.int64)
        self._plan = []
        for number, size in enumerate(sizes.tolist()):
            ids = kept[group == number]
            for start in range(0, len(ids), batch_size):
                share = ids[start : start + batch_size][rows.start : rows.stop]
                self._plan.append((size, share))

    def __len__(self) -> int:
        return len(self._plan)

    def __call__(self, step: int) -> Batch:
        """Builds one batch; a pure function of `step`."""
        num_samples, ids = self._plan[step]
        length = self._config.max_text_length
        batch = _empty_batch(self._num_rows, num_samples, length)
        batch["_mask"] = np.arange(self._num_rows) < len(ids)
        for row, example_id in enumerate(ids.tolist()):
            number = int(np.searchsorted(self._offsets, example_id, side="right")) - 1
            index = example_id - int(self._offsets[number])
            audio, captions = self._sources[number].audio_and_captions(index)
            text, mask = self._tokenizer.encode(captions[0] if captions else "", length)
            _fill_row(batch, row, [audio], text, mask, example_id)
        # Something a model can run on: attention over no token at all would give NaN.
        batch["text"][len(ids) :], batch["text_mask"][len(ids) :] = self._tokenizer.encode(
            "", length
        )
        if self._labels is not None:
            batch["labels"] = self._labels.rows(batch["example_id"])
        return batch


def _kept(labels: Labels | None, first: int, end: int) -> Sequence[int] | np.ndarray:
    """The examples first ... end - 1 that take part, counted from `first`."""
    if labels is None:
        return range(end - first)
    return labels.kept[slice(*np.searchsorted(labels.kept, [first, end]))] - first


def _empty_batch(num_rows: int, num_samples: int, max_text_length: int) -> Batch:
    return {
        "audio": np.zeros((num_rows, num_samples), np.int16),
        "audio_length": np.ones(num_rows, np.int32),
        "text": np.zeros((num_rows, max_text_length), np.int32),
        "text_mask": np.zeros((num_rows, max_text_length), bool),
        "example_id": np.full(num_rows, -1, np.int32),
    }


def _fill_row(
    batch: Batch,
    row: int,
    pieces: Sequence[np.ndarray],
    text: np.ndarray,
    mask: np.ndarray,
    example_id: int,
) -> None:
    """Writes one example; audio beyond the row is cut, none at all counts as one silent sample."""
    batch["audio_length"][row] = _fill_audio(batch["audio"][row], pieces)
    batch["text"][row] = text
    batch["text_mask"][row] = mask
    batch["example_id"][row] = example_id


def _fill_audio(row: np.ndarray, pieces: Sequence[np.ndarray]) -> int:
    """Writes clips to the front of a row of zeros; returns how many samples count."""
    end = 0
    for audio in pieces:
        audio = audio[: len(row) - end]
        row[end : end + len(audio)] = audio
        end += len(audio)
    return max(1, end)


def _drawn(rng: np.random.Generator, captions: Sequence[str]) -> str:
    return captions[int(rng.random() * len(captions))] if captions else ""
