"""The one place where audio files are decoded: any file libsndfile reads -> mono float32.

What comes out of odd files, everywhere in the project:

========================================  =====================================================
file                                      outcome
========================================  =====================================================
missing, folder, no permission            ``AudioError`` (``missing``, ``unreadable``)
not audio, damaged header, headerless     ``AudioError`` (``not_audio``)
zero samples, or ``start_seconds`` beyond ``AudioError`` (``empty``)
NaN or infinite samples                   ``AudioError`` (``non_finite``)
damaged in the middle                     what could be decoded before the damage
                                          (``unreadable`` if that is nothing)
silence                                   returned as it is; callers ask ``is_silent``
one sample                                at least one sample
10 minutes, 5 to 192 kHz, 1 to 8 channels decoded in blocks, never whole at the file's own rate
========================================  =====================================================
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

from alm_jax.errors import UserError

Reason = Literal["missing", "unreadable", "not_audio", "empty", "non_finite"]

SAMPLE_RATE = 16000
INT16_SCALE = 32767.0
SILENCE = 2.5e-4
# 2**18 frames keep the working set below 20 MB even with 8 channels.
_BLOCK_FRAMES = 1 << 18
# Beyond these a header is damaged: soxr would be asked for absurd amounts of memory.
_MIN_RATE, _MAX_RATE = 100, 1_536_000

AUDIO_SUFFIXES = frozenset(
    (
        *(".wav", ".wave", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2"),
        *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".voc", ".sf", ".sd2"),
    )
)


class AudioError(UserError):
    """An audio file that cannot be used.

    Attributes:
      path: the file's path, or the name given for bytes in memory.
      reason: ``missing``, ``unreadable``, ``not_audio``, ``empty`` or ``non_finite``.
      detail: what was found, in words.
    """

    def __init__(self, path: str, reason: Reason, detail: str) -> None:
        super().__init__(path, reason, detail)
        self.path = path
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.detail} ({self.reason})"


def _words(error: Exception) -> str:
    """The decoder's own words, without soundfile's prefix that names a file object's address."""
    return str(getattr(error, "error_string", error)).rstrip(".")


def _open(source: Path | bytes, name: str) -> soundfile.SoundFile:
    if isinstance(source, bytes):
        if not source:
            raise AudioError(name, "empty", "the file has no bytes")
        handle: str | bytes | io.BytesIO = io.BytesIO(source)
    else:
        try:
            status = source.stat()
            if stat.S_ISDIR(status.st_mode):
                raise AudioError(name, "unreadable", "this is a folder, not an audio file")
            if not stat.S_ISREG(status.st_mode):
                raise AudioError(name, "unreadable", "this is not a regular file")
            if status.st_size == 0:
                raise AudioError(name, "empty", "the file has no bytes")
            # libsndfile says only "System error": open once to learn the real reason.
            with source.open("rb"):
                pass
        except FileNotFoundError as error:
            raise AudioError(name, "missing", "no such file") from error
        except OSError as error:
            raise AudioError(name, "unreadable", f"cannot be opened: {error.strerror}") from error
        handle = os.fspath(source)
        if not handle.isascii():  # soundfile cannot encode names that are not UTF-8
            handle = os.fsencode(source)
    try:
        return soundfile.SoundFile(handle)
    except (soundfile.LibsndfileError, TypeError) as error:
        # TypeError: a name ending in .raw makes soundfile ask for a sample rate.
        raise AudioError(
            name, "not_audio", f"libsndfile cannot decode it: {_words(error)}"
        ) from error


def _to_mono(block: np.ndarray) -> np.ndarray:
    """Average of the channels, [S, C] -> [S]; column sums are 8 times faster than ``mean(1)``."""
    channels = block.shape[1]
    if channels == 1:
        return block[:, 0]
    mono = block[:, 0] + block[:, 1]
    for channel in range(2, channels):
        mono += block[:, channel]
    mono /= channels
    return mono


def _read_block(
    file: soundfile.SoundFile, frames: int, name: str, anything_read: bool
) -> np.ndarray:
    try:
        return file.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        if anything_read:
            return np.zeros((0, file.channels), np.float32)
        raise AudioError(name, "unreadable", f"decoding failed: {_words(error)}") from error


def read_audio(
    source: str | os.PathLike[str] | bytes,
    *,
    sample_rate: int = SAMPLE_RATE,
    max_seconds: float | None = None,
    start_seconds: float = 0.0,
    name: str | None = None,
) -> np.ndarray:
    """Decodes one audio file to mono at ``sample_rate`` (soxr, HQ), in blocks.

    Args:
      source: path of the file, or the whole file as bytes.
      sample_rate: rate of the result in Hz.
      max_seconds: decode no more than this (None: to the end).
      start_seconds: where in the file to begin.
      name: what errors call the file; the path by default.

    Returns:
      float32 [S], full scale 1.0 (float files may exceed it), S >= 1.

    Raises:
      AudioError: see the table at the top of this module.
      ValueError: an argument is out of range.
    """
    blocks = list(
        stream_audio(
            source,
            sample_rate=sample_rate,
            max_seconds=max_seconds,
            start_seconds=start_seconds,
            name=name,
        )
    )
    return np.concatenate(blocks) if len(blocks) > 1 else np.ascontiguousarray(blocks[0])


def stream_audio(
    source: str | os.PathLike[str] | bytes,
    *,
    sample_rate: int = SAMPLE_RATE,
    max_seconds: float | None = None,
    start_seconds: float = 0.0,
    name: str | None = None,
) -> Iterator[np.ndarray]:
    """Decodes as `read_audio`, and yields what it would return block by block.

    Yields:
      float32 [S], S >= 1; a few seconds each, whatever the length of the file.

    Raises:
      AudioError: as `read_audio`; perhaps only after some blocks.
      ValueError: an argument is out of range.
    """
    if sample_rate <= 0:
        raise ValueError(f"sample_rate={sample_rate}: must be positive (Hz)")
    if start_seconds < 0 or (max_seconds is not None and max_seconds <= 0):
        raise ValueError(f"start_seconds={start_seconds}, max_seconds={max_seconds}: out of range")
    if not isinstance(source, bytes):
        source = Path(source)
    name = name or ("<bytes>" if isinstance(source, bytes) else str(source))
    # Rounding may leave the resampler a sample more than was asked for.
    room = None if max_seconds is None else max(1, round(max_seconds * sample_rate))
    given = 0
    first: np.float32 | None = None
    with _open(source, name) as file:
        rate = file.samplerate
        if not _MIN_RATE <= rate <= _MAX_RATE:
            raise AudioError(name, "not_audio", f"the header claims a sample rate of {rate} Hz")
        if start_seconds:
            _skip(file, round(start_seconds * rate), name)
        resampler = (
            None
            if rate == sample_rate
            else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
        )
        wanted = None if max_seconds is None else max(1, round(max_seconds * rate))
        for mono in _mono_blocks(file, wanted, name):
            if first is None:
                first = mono[0]
            block = mono if resampler is None else resampler.resample_chunk(mono)
            block = block if room is None else block[: room - given]
            given += len(block)
            if len(block):
                yield block
    if first is None:
        raise AudioError(
            name,
            "empty",
            "it has no samples" + (f" after {start_seconds:g} s" if start_seconds else ""),
        )
    if resampler is not None:
        block = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        block = block if room is None else block[: room - given]
        given += len(block)
        if len(block):
            yield block
    if not given:
        # A sample or two at 192 kHz are less than one at 16 kHz.
        yield np.full(1, first, np.float32)


def _mono_blocks(file: soundfile.SoundFile, wanted: int | None, name: str) -> Iterator[np.ndarray]:
    """Up to `wanted` frames of an open file, a block at a time, its channels averaged."""
    # Only these can hold NaN or infinity; checking every block of the others costs time for
    # nothing.
    floating = file.subtype in ("FLOAT", "DOUBLE") or file.format in ("MAT4", "MAT5")
    anything = False
    while wanted is None or wanted > 0:
        frames = _BLOCK_FRAMES if wanted is None else min(_BLOCK_FRAMES, wanted)
        block = _read_block(file, frames, name, anything)
        if len(block) == 0:
            return
        mono = _to_mono(block)
        if floating and not np.isfinite(mono).all():
            raise AudioError(name, "non_finite", "it holds NaN or infinite samples")
        anything = True
        yield mono
        wanted = None if wanted is None else wanted - len(block)


def _skip(file: soundfile.SoundFile, frames: int, name: str) -> None:
    """Moves to ``frames``; by decoding where the format cannot seek."""
    if file.seekable():
        try:
            file.seek(min(frames, file.frames))
            return
        except soundfile.LibsndfileError as error:
            raise AudioError(name, "unreadable", f"seeking failed: {_words(error)}") from error
    while frames > 0:
        block = _read_block(file, min(_BLOCK_FRAMES, frames), name, True)
        if len(block) == 0:
            return
        frames -= len(block)


def to_int16(audio: np.ndarray) -> np.ndarray:
    """Turns float [S] into int16 [S], 1.0 -> 32767, rounded, clipped at full scale."""
    return np.rint(np.clip(audio, -1.0, 1.0) * INT16_SCALE).astype(np.int16)


def is_silent(audio: np.ndarray) -> bool:
    """True if float or int16 ``audio`` [S] stays below -72 dB of full scale (8 int16 steps).

    Real recordings of silence flicker by a step or two; the quietest recording in OpenSounds peaks
    at -32 dB.
    """
    if audio.size == 0:
        return True
    full_scale = 1.0 if audio.dtype.kind == "f" else INT16_SCALE
    return float(np.abs(audio.astype(np.float32)).max()) < SILENCE * full_scale


def find_audio_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the audio files below ``folder`` (by suffix, any case), sorted, hidden ones left out.

    Raises:
      AudioError: ``folder`` is missing or not a folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise AudioError(str(root), "missing", "no such folder")
    for current, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(current, name)
