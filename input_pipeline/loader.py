"""Batches for training and evaluation, read ahead by grain.

A grain `MapDataset` of step numbers is mapped to batches (`input_pipeline.batches`, which also
lists their keys), so that the global batches are the same for any number of hosts and workers,
nobody holds an index, and the state is the number of the next step. grain's own ElasticIterator
has such a state too, but deals the rows out in turn, which permutes the global batch when the
number of hosts changes.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from alm_jax.errors import UserError
from input_pipeline import batches
from input_pipeline.batches import Batch, Encoder
from input_pipeline.labels import Labels
from input_pipeline.loader_config import LoaderConfig, host_rows
from input_pipeline.pool import exit_with
from input_pipeline.sources import Source

_STATE_KEY = "next_step"
# Far beyond any training, and small enough that positions (step * batch size) stay within 64 bits.
_MAX_STEPS = 2**40


def train_loader(
    data: Mapping[str, Any] | LoaderConfig,
    tokenizer: Encoder,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    labels: Labels | None = None,
) -> "TrainLoader":
    """Makes the endless iterator over training batches.

    Every epoch is a new order of the split without repeats; where the split is not a multiple of
    the batch, a batch spans two epochs. With `sampling="balanced"`, every position of a batch is
    drawn by itself instead. Order, crop and caption draw depend on the seed, the epoch
    and the example alone.

    Args:
      data: `config.data` (see `LoaderConfig`).
      tokenizer: encodes the captions.
      seed: of the order, the crops and the caption draws; any integer.
      process_index: this host's number, 0 ... process_count - 1.
      process_count: number of hosts; must divide `batch_size`.
      labels: of the training split, where batches are to hold them.

    Returns:
      The loader; close it (or use it in a `with`) when `num_workers` is above 0.

    Raises:
      UserError: a bad field, no such dataset or split, or a batch that the hosts cannot share.
    """
    config = LoaderConfig.create(data)
    rows = host_rows(config.batch_size, process_index, process_count)
    opened = config.open_training()
    if len(opened) > 1:
        _log_mixture(config, opened)
    num_examples = sum(map(len, opened)) if labels is None else len(labels.kept)
    if num_examples < config.batch_size:
        logging.warning(
            "%s: %d examples are fewer than batch_size=%d, so every batch repeats some",
            ", ".join(source.directory for source in opened),
            num_examples,
            config.batch_size,
        )
    build = batches.TrainBatches(config, opened, tokenizer, seed, rows, labels)
    return TrainLoader(config, build, num_examples)


def _log_mixture(config: LoaderConfig, opened: Sequence[Source]) -> None:
    sizes = [len(source) for source in opened]
    for source, size, share in zip(opened, sizes, config.shares(sizes), strict=True):
        logging.info(
            "mixture: %.1f%% of a batch from %s, %d clips, an epoch every %.0f steps",
            100 * share,
            source.directory,
            size,
            size / (share * config.batch_size),
        )


class TrainLoader(Iterator[Batch]):
    """Endless training batches; its whole state is the number of the next step.

    Attributes:
      num_examples: that take part (all sources together).
      steps_per_epoch: `num_examples` / global batch size, a fraction.
    """

    def __init__(
        self, config: LoaderConfig, build: batches.TrainBatches, num_examples: int
    ) -> None:
        self._config = config
        self._build = build
        self._next_step = 0
        self._iterator: Any = None
        self._closed = False
        self.num_examples = num_examples
        self.steps_per_epoch = num_examples / config.batch_size

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("this loader was closed; make a new one with train_loader")
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._next_step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns {"next_step": n}: batches handed out, not read ahead; the same on every host."""
        return {_STATE_KEY: self._next_step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues at step `state["next_step"]`, exactly as if the steps before had been taken.

        The number of hosts, workers and threads may differ from when the state was saved; the
        dataset, the seed and the batch size must not.
        """
        step = state.get(_STATE_KEY)
        if isinstance(step, np.integer):
            step = int(step)
        if not isinstance(step, int) or not 0 <= step < _MAX_STEPS:
            raise ValueError(f"loader state {dict(state)!r}: needs {_STATE_KEY!r}, an integer >= 0")
        self._stop()
        self._next_step = step

    def close(self) -> None:
        """Ends threads and worker processes; the loader gives no more batches."""
        self._stop()
        self._closed = True

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> Any:
        steps = grain.MapDataset.range(self._next_step, _MAX_STEPS).map(self._build)
        dataset = steps.to_iter_dataset(_read_options(self._config))
        if self._config.num_workers:
            # grain reads its absl flags before it starts a worker, and this program need not be
            # an absl app; parsing later on still works.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.multiprocessing.MultiprocessingOptions(self._config.num_workers)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_exit_with(os.getpid()))
        return iter(dataset)

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def eval_batches(
    data: Mapping[str, Any] | LoaderConfig,
    tokenizer: Encoder,
    split: str,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    bucket_seconds: Sequence[float] = (),
    labels: Labels | None = None,
) -> "EvalLoader":
    """Iterates over a split once, in a fixed order, every example exactly once.

    Every host gets the same number of batches of the same shapes; the last one of a shape is filled
    up with padding rows (`_mask` False). Where an example has several captions, the batch holds the
    first (`Source.captions` has all). Built in this process, whatever `num_workers` says.

    Args:
      data: `config.data` (see `LoaderConfig`).
      tokenizer: encodes the captions.
      split: the split's name, or a part of it (`test[:100]`).
      batch_size: global; `process_count` must divide it.
      process_index: this host's number.
      process_count: number of hosts.
      bucket_seconds: lengths to which clips may be padded; a clip goes into the shortest that holds
        it, else into `max_seconds`. Batches of short clips come first, so a step compiles once for
        each length. Costs one reading of the split beforehand. Empty: all are padded to
        `max_seconds`, in the order of the split.
      labels: of this split, where batches are to hold them; examples that they leave out are.

    Returns:
      An iterator with a length (number of batches).

    Raises:
      UserError: as `train_loader`; or a bucket shorter than one sample.
    """
    config = LoaderConfig.create(data)
    rows = host_rows(batch_size, process_index, process_count)
    bucket_samples = [round(seconds * config.sample_rate) for seconds in bucket_seconds]
    if any(samples < 1 for samples in bucket_samples):
        raise UserError(f"bucket_seconds={tuple(bucket_seconds)!r}: each must be above 0")
    opened = config.open(split)
    build = batches.EvalBatches(config, opened, tokenizer, batch_size, rows, bucket_samples, labels)
    return EvalLoader(config, build)


class EvalLoader(Iterator[Batch]):
    """One pass over a split; `len()` is its number of batches, `num_examples` what they hold."""

    def __init__(self, config: LoaderConfig, build: batches.EvalBatches) -> None:
        self._length = len(build)
        self.num_examples = build.num_examples
        steps = grain.MapDataset.range(self._length).map(build)
        self._iterator: Any = iter(steps.to_iter_dataset(_read_options(config)))

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        try:
            return next(self._iterator)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        """Ends the pass and its reading threads; the last batch does so by itself."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def _read_options(config: LoaderConfig) -> grain.ReadOptions:
    return grain.ReadOptions(
        num_threads=config.read_threads,
        prefetch_buffer_size=max(config.prefetch_batches, config.read_threads),
    )


def _exit_with(parent: int) -> Callable[[int, int], None]:
    """A grain `worker_init_fn` that ends the worker once process `parent` is gone."""

    def start_watch(worker_index: int, worker_count: int) -> None:
        del worker_index, worker_count
        exit_with(parent)

    return start_watch
