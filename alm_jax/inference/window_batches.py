"""Windows of many clips -> batches of few static shapes -> what a model says of each clip.

Shapes: B rows of a batch, S samples of a bucket, W samples of a window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from alm_jax.inference.clips import Clip, clip_name, pcm_blocks, windows
from input_pipeline.audio_files import AudioError, is_silent

T = TypeVar("T")
# A result of one window: its clip's number, its samples, the model's row for it.
Row = tuple[int, int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ClipResult(Generic[T]):
    """What became of one clip.

    Attributes:
      index: its place among the clips given.
      value: embedding [d] or caption; None if the clip could not be used.
      error: why it could not be used, else None.
      seconds: how much of it was read.
      silent: what was read never rises above -72 dB.
    """

    index: int
    value: T | None
    error: AudioError | None
    seconds: float
    silent: bool


def bucket_sizes(bucket_seconds: Sequence[float], max_seconds: float, rate: int) -> list[int]:
    """Lengths in samples to which windows are padded, ascending; the last is the longest window."""
    longest = max(1, round(max_seconds * rate))
    return sorted({min(max(1, round(s * rate)), longest) for s in bucket_seconds} | {longest})


def each_clip(
    clips: Sequence[Clip],
    forward: Callable[[np.ndarray, np.ndarray], Any],
    *,
    from_rate: float | None,
    to_rate: int,
    sizes: Sequence[int],
    rows: int,
    max_samples: int | None = None,
) -> Iterator[ClipResult[list[tuple[int, np.ndarray]]]]:
    """Runs a model over the windows of all clips; a bad clip does not disturb the others.

    Args:
      clips: paths, or arrays (see `alm_jax.inference.clips.pcm`).
      forward: audio int16 [B, S], audio_length int32 [B] -> array [B, ...], perhaps computed
        asynchronously.
      from_rate: sample rate of the arrays in Hz.
      to_rate: the model's, in Hz.
      sizes: lengths S to which windows may be padded, ascending; the last is W.
      rows: B.
      max_samples: read no more than the first so many of each clip.

    Yields:
      A result for each clip as soon as it is known, in the order of completion; its value is the
      list of (samples, row of the result) of the clip's windows, in the order of completion.

    Raises:
      UserError: an array that cannot be audio, or comes without a sample rate.
    """
    batches = WindowBatches(forward, sizes, rows)
    unfinished: dict[int, _Unfinished] = {}

    def collect(results: Iterator[Row]) -> Iterator[int]:
        """Notes rows under their clips; yields the clips that are complete by that."""
        for index, samples, row in results:
            clip = unfinished[index]
            clip.rows.append((samples, row))
            if clip.complete:
                yield index

    def close(index: int) -> ClipResult[list[tuple[int, np.ndarray]]]:
        clip = unfinished.pop(index)
        value = clip.rows if clip.error is None else None
        return ClipResult(index, value, clip.error, clip.samples / to_rate, clip.silent)

    for index, clip in enumerate(clips):
        state = unfinished[index] = _Unfinished()
        blocks = pcm_blocks(clip, from_rate, to_rate, clip_name(clip, index), max_samples)
        try:
            for window in windows(state.watch(blocks), sizes[-1]):
                state.sent += 1
                for done in collect(batches.put(index, window)):
                    yield close(done)
        except AudioError as error:
            state.error = error
        state.ended = True
        if state.complete:
            yield close(index)
    for done in collect(batches.flush()):
        yield close(done)


@dataclasses.dataclass
class _Unfinished:
    """A clip of which windows are still to be cut or computed."""

    rows: list[tuple[int, np.ndarray]] = dataclasses.field(default_factory=list)
    sent: int = 0
    samples: int = 0
    silent: bool = True
    ended: bool = False
    error: AudioError | None = None

    @property
    def complete(self) -> bool:
        return self.ended and len(self.rows) == self.sent

    def watch(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Passes blocks on, noting how long the clip is and whether it is silent."""
        for block in blocks:
            self.samples += len(block)
            self.silent = self.silent and is_silent(block)
            yield block


class WindowBatches:
    """Gathers windows into batches of few shapes and runs them, one batch ahead of its results.

    A window is padded to the shortest bucket that holds it, and a batch is filled up to `rows` with
    silence, so that a model is compiled once for each bucket. Only a single window in all is run as
    a batch of one: `model.embed_audio("a.wav")` should not pay for a whole batch.
    """

    def __init__(
        self, forward: Callable[[np.ndarray, np.ndarray], Any], sizes: Sequence[int], rows: int
    ) -> None:
        """Prepares an empty set of batches.

        Args:
          forward: see `each_clip`.
          sizes: the buckets' S, ascending.
          rows: B.
        """
        self._forward = forward
        self._sizes = list(sizes)
        self._rows = rows
        self._waiting: dict[int, list[tuple[int, np.ndarray]]] = {size: [] for size in sizes}
        self._running: tuple[list[tuple[int, np.ndarray]], Any] | None = None
        self._total = 0

    def put(self, clip: int, audio: np.ndarray) -> Iterator[Row]:
        """Adds a window int16 [<= W]; yields the results of an earlier batch, if one is due."""
        size = next(size for size in self._sizes if size >= len(audio))
        self._total += 1
        self._waiting[size].append((clip, audio))
        if len(self._waiting[size]) == self._rows:
            yield from self._run(size)

    def flush(self) -> Iterator[Row]:
        """Runs what waits and yields all remaining results."""
        for size in self._sizes:
            if self._waiting[size]:
                yield from self._run(size)
        yield from self._collect()

    def _run(self, size: int) -> Iterator[Row]:
        members, self._waiting[size] = self._waiting[size], []
        rows = 1 if self._total == 1 else self._rows
        audio = np.zeros((rows, size), np.int16)
        length = np.ones(rows, np.int32)
        for row, (_, window) in enumerate(members):
            audio[row, : len(window)] = window
            length[row] = len(window)
        # JAX returns before the result is computed: meanwhile the next files are decoded.
        result = self._forward(audio, length)
        earlier = list(self._collect())
        self._running = (members, result)
        yield from earlier

    def _collect(self) -> Iterator[Row]:
        if self._running is not None:
            members, result = self._running
            self._running = None
            for (clip, window), row in zip(members, np.asarray(result), strict=False):
                yield clip, len(window), row
